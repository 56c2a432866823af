-- Are the past items that a pair's two users are known by all in the profiles, without a gap?
WITH asked AS (
    SELECT profile_id, profile_size FROM pairs UNION ALL SELECT other_profile_id, other_profile_size FROM pairs
)
SELECT profile_id AS row, format('{} items are needed, {} are there', max(profile_size), coalesce(any_value(items), 0))
           AS problem
FROM asked LEFT JOIN (
    SELECT profile_id, CASE WHEN count(DISTINCT position) = max(position) + 1 THEN count(DISTINCT position) ELSE 0 END AS items
    FROM profiles GROUP BY profile_id
) USING (profile_id)
GROUP BY profile_id
HAVING max(profile_size) > coalesce(any_value(items), 0)
