-- The quickstart: five searches over 10,000 package descriptions. `wishes` holds 12 texts that describe no package of
-- the table, with their embeddings: what a user of a search box would have typed.

-- What is there.
SELECT count(*) AS packages, min(released) AS oldest, max(released) AS newest, max(vector_dims(embedding)) AS dimensions
FROM packages;

-- A search: the packages nearest to a wish ('Pretty-print JSON Lines files and report invalid lines').
SELECT name, round(cosine_distance(embedding, (SELECT embedding FROM wishes WHERE id = 10)), 4) AS distance, summary
FROM packages
ORDER BY cosine_distance(embedding, (SELECT embedding FROM wishes WHERE id = 10))
LIMIT 5;

-- A filtered search: WHERE chooses the candidates, so there are five answers however rare they are.
SELECT name, released, download_rank, embedding <=> (SELECT embedding FROM wishes WHERE id = 10) AS distance
FROM packages
WHERE released >= DATE '2026-01-01' AND download_rank <= 10000
ORDER BY distance
LIMIT 5;

-- A search by the vector of another row: what else is like psycopg, the PostgreSQL adapter?
SELECT name, embedding <=> (SELECT embedding FROM packages WHERE name = 'psycopg') AS distance, summary
FROM packages
WHERE name <> 'psycopg'
ORDER BY distance
LIMIT 5;

-- A range search: every package within a distance of chardet, however many there are.
SELECT name, cosine_distance(embedding, (SELECT embedding FROM packages WHERE name = 'chardet')) AS distance
FROM packages
WHERE cosine_distance(embedding, (SELECT embedding FROM packages WHERE name = 'chardet')) < 0.45
ORDER BY distance;

-- A join with an aggregate over search results: is crawling the web in fashion? The 300 packages nearest to the wish,
-- counted by year, beside all packages of that year.
WITH near AS (
  SELECT id FROM packages ORDER BY embedding <=> (SELECT embedding FROM wishes WHERE id = 8) LIMIT 300
)
SELECT extract(YEAR FROM p.released) AS year,
       count(near.id) AS crawlers,
       count(*) AS packages,
       round(100.0 * count(near.id) / count(*), 1) AS percent
FROM packages p LEFT JOIN near ON near.id = p.id
GROUP BY year
HAVING count(*) >= 100
ORDER BY year;

-- How the filtered search is run: the predicate first, then the search, then the other columns of the five rows alone.
EXPLAIN
SELECT name, released, embedding <=> (SELECT embedding FROM wishes WHERE id = 10) AS distance
FROM packages
WHERE released >= DATE '2026-01-01' AND download_rank <= 10000
ORDER BY distance
LIMIT 5;
