-- Why were candidates rejected, by task?
SELECT reason, task, count(*) AS rows
FROM rejected
GROUP BY reason, task
ORDER BY reason, task
