-- Is every user in one split only, where the manifest says that users are disjoint?
SELECT user_id AS row, format('is in {} and {}', min(split), max(split)) AS problem
FROM attempts
WHERE (SELECT disjoint_users FROM manifest)
GROUP BY user_id
HAVING min(split) <> max(split)
