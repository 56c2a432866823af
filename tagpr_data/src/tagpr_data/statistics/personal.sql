-- How many traces hold personal data, by kind and task? A trace counts once for each kind it holds.
SELECT kind, task, count(*) AS traces
FROM (SELECT unnest(personal_data) AS kind, task FROM traces)
GROUP BY kind, task
ORDER BY kind, task
