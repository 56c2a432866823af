-- Is every user in one split only, where the manifest says that users are disjoint?
SELECT user_id AS row, format('is in {}', string_agg(DISTINCT split, ' and ' ORDER BY split)) AS problem
FROM attempts
WHERE (SELECT disjoint_users FROM manifest)
GROUP BY user_id
HAVING count(DISTINCT split) > 1
