-- Do all attempts on one example name the same user, task and gold answer?
SELECT example_id AS row, 'attempts differ in user, task or gold' AS problem
FROM attempts
GROUP BY example_id
HAVING count(DISTINCT user_id) > 1 OR count(DISTINCT task) > 1 OR count(DISTINCT coalesce(gold, '')) > 1
