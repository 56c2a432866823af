-- Does the manifest state the number of rejected candidates for each reason?
SELECT 'manifest.json' AS row,
       format('rejected.{} is {}, rejected/ has {} rows', reason, coalesce(stated.rows, 0), coalesce(found.rows, 0))
           AS problem
FROM manifest_rejected AS stated
FULL JOIN (SELECT reason, count(*) AS rows FROM rejected GROUP BY reason) AS found USING (reason)
WHERE coalesce(stated.rows, 0) <> coalesce(found.rows, 0)
