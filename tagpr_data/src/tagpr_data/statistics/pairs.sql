-- How many preference pairs are there of each split, task and kind?
SELECT split, task, kind, count(*) AS pairs, count(DISTINCT user_id) AS users, sum(round(margin * 1e6))::BIGINT AS micro_margin
FROM pairs
GROUP BY split, task, kind
ORDER BY split, task, kind
