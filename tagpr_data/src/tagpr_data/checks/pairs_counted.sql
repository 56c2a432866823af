-- Does the pairs manifest state the number of pairs for each split and kind?
SELECT 'pairs/manifest.json' AS row,
       format('pairs.{}.{} is {}, the files have {}', split, kind, coalesce(stated.rows, 0), coalesce(found.rows, 0))
           AS problem
FROM manifest_pairs AS stated
FULL JOIN (SELECT split, kind, count(*) AS rows FROM pairs GROUP BY split, kind) AS found USING (split, kind)
WHERE coalesce(stated.rows, 0) <> coalesce(found.rows, 0)
