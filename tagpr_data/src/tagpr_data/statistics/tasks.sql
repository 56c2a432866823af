-- How many attempts of each teacher on each task were kept, and how good are they?
SELECT task, teacher, teacher_revision, count(*) AS attempts, sum(is_kept)::BIGINT AS kept,
       sum(micro_score)::BIGINT AS micro_score, sum(claims)::BIGINT AS claims,
       sum(grounded_claims)::BIGINT AS grounded_claims, count(input_tokens + output_tokens) AS rows_with_token_counts,
       sum(input_tokens)::BIGINT AS input_tokens, sum(output_tokens)::BIGINT AS output_tokens
FROM (SELECT task, teacher, teacher_revision, 1 AS is_kept, round(score * 1e6)::BIGINT AS micro_score, claims,
             grounded_claims, input_tokens, output_tokens FROM traces
      UNION ALL SELECT task, teacher, teacher_revision, 0, 0, 0, 0, input_tokens, output_tokens FROM rejected)
GROUP BY task, teacher, teacher_revision
ORDER BY task, teacher, teacher_revision
