-- Is every row's task defined in the manifest?
SELECT id AS row, format('task {} is not defined', task) AS problem
FROM attempts
WHERE task NOT IN (SELECT name FROM manifest_tasks)
