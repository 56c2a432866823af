-- Is every id used once over traces and rejected?
SELECT id AS row, format('occurs {} times', count(*)) AS problem
FROM attempts
GROUP BY id
HAVING count(*) > 1
