-- Is every pair's id used once?
SELECT id AS row, format('occurs {} times', count(*)) AS problem
FROM pairs
GROUP BY id
HAVING count(*) > 1
