-- How many attempts of each teacher on each task were kept, and how good are they?
SELECT task, teacher, teacher_revision, count(*) AS attempts, sum(is_kept)::BIGINT AS kept,
       sum(micro_score)::BIGINT AS micro_score, sum(claims)::BIGINT AS claims,
       sum(grounded_claims)::BIGINT AS grounded_claims
FROM (SELECT task, teacher, teacher_revision, 1 AS is_kept, round(score * 1e6)::BIGINT AS micro_score, claims,
             grounded_claims FROM traces
      UNION ALL SELECT task, teacher, teacher_revision, 0, 0, 0, 0 FROM rejected)
GROUP BY task, teacher, teacher_revision
ORDER BY task, teacher, teacher_revision
