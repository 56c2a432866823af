-- Do all attempts on one example name the same user, task and gold answer?
SELECT example_id AS row, 'attempts differ in user, task or gold' AS problem
FROM attempts
GROUP BY example_id
HAVING min(user_id) <> max(user_id) OR min(task) <> max(task) OR min(coalesce(gold, '')) <> max(coalesce(gold, ''))
