-- How many traces has a user?
SELECT count(*) AS users, min(traces) AS min, quantile_disc(traces, 0.5) AS median, max(traces) AS max
FROM (SELECT user_id, count(*) AS traces FROM traces GROUP BY user_id)
