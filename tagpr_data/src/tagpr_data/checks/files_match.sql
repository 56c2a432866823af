-- Are the Parquet files of the folder exactly those of the manifest, with the rows and hash it states?
SELECT coalesce(stated.path, found.path) AS row,
       CASE WHEN found.path IS NULL THEN 'is in the manifest but not in the folder'
            WHEN stated.path IS NULL THEN 'is in the folder but not in the manifest'
            WHEN stated.rows <> found.rows THEN format('has {} rows, the manifest says {}', found.rows, stated.rows)
            ELSE 'has another hash than the manifest says' END AS problem
FROM manifest_files AS stated FULL JOIN found_files AS found USING (path)
WHERE stated.path IS NULL OR found.path IS NULL OR stated.rows <> found.rows OR stated.sha256 <> found.sha256
