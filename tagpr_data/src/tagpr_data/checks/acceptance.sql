-- Is the manifest's acceptance the share of candidates kept, for each task?
SELECT 'manifest.json' AS row,
       format('acceptance.{} is {}, the files give {}', task, coalesce(stated.share, -1), coalesce(found.share, -1))
           AS problem
FROM manifest_acceptance AS stated
FULL JOIN (SELECT task, avg(is_kept::INT) AS share FROM attempts GROUP BY task) AS found USING (task)
WHERE stated.share IS NULL OR found.share IS NULL OR abs(stated.share - found.share) > 1e-9
