package main

import (
	"context"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/gormsessions/gormsessions"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"gorm.io/datatypes"
	"gorm.io/gorm"
)

// loader fills a table with n rows.
type loader func(ctx context.Context, table, columns string, n int, row func(i int) []any, did func(rows int)) error

// load makes the tables and fills them: the plugin's by its own migration, and
// those of scs's stores as their documentation says.
func (s *store) load(ctx context.Context, bar *progress, fill loader) error {
	db, err := s.gorm(gorm.Config{})
	if err != nil {
		return err
	}
	db = db.WithContext(ctx)
	if err := db.AutoMigrate(&User{}, &storeSession{}); err != nil {
		return err
	}
	if err := db.Use(gormsessions.New[UserSession](config)); err != nil {
		return err
	}
	type table struct {
		name, columns string
		rows          int
		row           func(i int) []any
	}
	tables := []table{
		{"users", "id, email", s.rows.owners() + newcomers, func(i int) []any { return []any{i + 1, email(uint(i + 1))} }},
		{"user_sessions", sessionColumns, s.rows.rows, func(i int) []any {
			session := s.rows.session(i)
			return values(&session)
		}},
		{"sessions", "token, data, expiry", s.rows.rows, func(i int) []any {
			session := s.rows.session(i)
			return []any{storeKey(s.rows.token(i)), blob(&session), *session.ExpiresAt}
		}},
	}
	if s.kind == "sqlite" {
		// sqlite3store keeps the expiry as a Julian day.
		for _, statement := range []string{
			"CREATE TABLE " + sqlite3storeTable + " (token TEXT PRIMARY KEY, data BLOB NOT NULL, expiry REAL NOT NULL)",
			"CREATE INDEX scs_sessions_expiry_idx ON " + sqlite3storeTable + "(expiry)",
		} {
			if err := db.Exec(statement).Error; err != nil {
				return err
			}
		}
		tables = append(tables, table{sqlite3storeTable, "token, data, expiry", s.rows.rows, func(i int) []any {
			session := s.rows.session(i)
			day := float64(session.ExpiresAt.UnixMicro())/float64((24*time.Hour).Microseconds()) + 2440587.5
			return []any{storeKey(s.rows.token(i)), blob(&session), day}
		}})
	}
	total := 0
	for _, t := range tables {
		total += t.rows
	}
	bar.begin(fmt.Sprintf("%s: load %s rows", s.title, thousands(s.rows.rows)), total)
	defer bar.end()
	for _, t := range tables {
		if err := fill(ctx, t.name, t.columns, t.rows, t.row, bar.add); err != nil {
			return fmt.Errorf("load %s: %w", t.name, err)
		}
	}
	return nil
}

// insertBatches fills a table in one transaction, by INSERTs of many rows.
func insertBatches(pool *sql.DB, size int) loader {
	return func(ctx context.Context, table, columns string, n int, row func(int) []any, did func(int)) error {
		tx, err := pool.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }()
		one := "(?" + strings.Repeat(",?", strings.Count(columns, ",")) + ")"
		text := func(rows int) string {
			return "INSERT INTO " + table + " (" + columns + ") VALUES " + one + strings.Repeat(","+one, rows-1)
		}
		many, err := tx.PrepareContext(ctx, text(size))
		if err != nil {
			return err
		}
		defer func() { _ = many.Close() }()
		args := make([]any, 0, size*20)
		for i := 0; i < n; {
			args = args[:0]
			first := i
			for ; i < n && i < first+size; i++ {
				args = append(args, row(i)...)
			}
			if i-first == size {
				_, err = many.ExecContext(ctx, args...)
			} else {
				_, err = tx.ExecContext(ctx, text(i-first), args...)
			}
			if err != nil {
				return err
			}
			did(i - first)
		}
		return tx.Commit()
	}
}

// copyIn fills a table by PostgreSQL's COPY.
func copyIn(pool *pgxpool.Pool) loader {
	return func(ctx context.Context, table, columns string, n int, row func(int) []any, did func(int)) error {
		i := 0
		_, err := pool.CopyFrom(ctx, pgx.Identifier{table}, strings.Split(columns, ", "), pgx.CopyFromFunc(func() ([]any, error) {
			if i == n {
				return nil, nil
			}
			values := row(i)
			for j, v := range values {
				switch v := v.(type) {
				case uuid.UUID:
					values[j] = [16]byte(v)
				case datatypes.JSONMap:
					values[j] = map[string]any(v)
				case uint:
					values[j] = int64(v)
				}
			}
			if i++; i%1000 == 0 || i == n {
				did((i-1)%1000 + 1)
			}
			return values, nil
		}))
		return err
	}
}

// kept is what an application that uses scs keeps in a session: the same facts as
// the columns of ours, but for those of the session's life.
type kept struct {
	ID        uuid.UUID         `json:"id"`
	OwnerID   uint              `json:"owner_id"`
	Device    string            `json:"device"`
	Data      datatypes.JSONMap `json:"data"`
	CreatedAt time.Time         `json:"created_at"`
}

func blob(s *UserSession) []byte {
	text, err := json.Marshal(kept{s.ID, s.OwnerID, s.Device, s.Data, s.CreatedAt})
	if err != nil {
		panic(err) // it is all ours
	}
	return text
}

// storeKey is what scs gives its stores with HashTokenInStore: so its tokens are
// no more readable in the database than ours.
func storeKey(token string) string { return base64.RawURLEncoding.EncodeToString(digest(token)) }

const maxRedis = 1_000_000

// openRedis fills Redis, if there is one. Its keys are of the run alone and go by
// themselves should it be killed.
func (s *store) openRedis(ctx context.Context, bar *progress) error {
	if s.rows.rows > maxRedis {
		bar.note("Redis is left out above %s rows: each takes some 0.5 kB of memory", thousands(maxRedis))
		return nil
	}
	client := redis.NewClient(&redis.Options{Addr: setting("GORMSESSIONS_REDIS", "127.0.0.1:6379"), PoolSize: s.conns})
	if err := client.Ping(ctx).Err(); err != nil {
		bar.note("Redis is left out: %v", err)
		return client.Close()
	}
	s.redis, s.prefix = client, unique()+":"
	s.later(client.Close)
	loaded := 0
	each := func(ctx context.Context, do func(redis.Pipeliner, int)) error {
		for first := 0; first < s.rows.rows; first += 1000 {
			_, err := client.Pipelined(ctx, func(p redis.Pipeliner) error {
				for i := first; i < min(first+1000, s.rows.rows); i++ {
					do(p, i)
				}
				return nil
			})
			if err != nil {
				return err
			}
			loaded = first + 1000
		}
		return nil
	}
	s.later(func() error {
		ctx := context.WithoutCancel(ctx)
		last := loaded + 1000
		return each(ctx, func(p redis.Pipeliner, i int) {
			if i < last {
				p.Unlink(ctx, s.redisKey(i))
			}
		})
	})
	bar.begin(fmt.Sprintf("Redis: load %s rows", thousands(s.rows.rows)), s.rows.rows)
	defer bar.end()
	return each(ctx, func(p redis.Pipeliner, i int) {
		session := s.rows.session(i)
		p.Set(ctx, s.redisKey(i), blob(&session), 6*time.Hour)
		bar.add(1)
	})
}

func (s *store) redisKey(i int) string { return s.prefix + storeKey(s.rows.token(i)) }
