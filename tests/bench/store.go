package main

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/gormsessions/gormsessions/internal/conformance"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	gormmysql "gorm.io/driver/mysql"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

// titles are the databases that can be asked for.
var titles = map[string]string{"sqlite": "SQLite", "postgres": "PostgreSQL", "mariadb": "MariaDB"}

// store is a database of the run's own, filled with its rows. All contestants
// share its pool, but for those that do not use database/sql.
type store struct {
	kind    string // a key of titles
	title   string
	version string
	rows    population
	conns   int

	pool   *sql.DB
	native *pgxpool.Pool // of PostgreSQL
	redis  *redis.Client // nil where there is none
	prefix string        // of its keys

	undo []func() error
}

// close removes what the run has made, the latest first.
func (s *store) close() error {
	var errs []error
	for i := len(s.undo) - 1; i >= 0; i-- {
		errs = append(errs, s.undo[i]())
	}
	s.undo = nil
	return errors.Join(errs...)
}

// later is for close.
func (s *store) later(undo func() error) { s.undo = append(s.undo, undo) }

// openStore makes and fills a database. The caller closes the store, also after
// an error.
func openStore(ctx context.Context, kind string, rows population, conns int, bar *progress) (*store, error) {
	s := &store{kind: kind, title: titles[kind], rows: rows, conns: conns}
	var err error
	switch kind {
	case "sqlite":
		err = s.openSQLite(ctx, bar)
	case "postgres":
		err = s.openPostgreSQL(ctx, bar)
	case "mariadb":
		err = s.openMariaDB(ctx, bar)
	default:
		err = fmt.Errorf("no database is called %q: sqlite, postgres, mariadb", kind)
	}
	if err != nil {
		return s, fmt.Errorf("%s: %w", kind, err)
	}
	return s, nil
}

func setting(name, fallback string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return fallback
}

func unique() string { return "gormsessions_bench_" + strings.ToLower(rand.Text()[:10]) }

// use opens the pool that contestants share. Connections stay: none is to pay for
// opening one.
func (s *store) use(ctx context.Context, driver, dsn string) error {
	pool, err := sql.Open(driver, dsn)
	if err != nil {
		return err
	}
	s.later(pool.Close)
	pool.SetMaxOpenConns(s.conns)
	pool.SetMaxIdleConns(s.conns)
	s.pool = pool
	return pool.PingContext(ctx)
}

// gorm opens a *gorm.DB on the pool.
func (s *store) gorm(config gorm.Config) (*gorm.DB, error) {
	config.Logger = logger.Discard
	var dialector gorm.Dialector
	switch s.kind {
	case "sqlite":
		dialector = sqlite.New(sqlite.Config{Conn: s.pool})
	case "postgres":
		dialector = postgres.New(postgres.Config{Conn: s.pool})
	case "mariadb":
		dialector = gormmysql.New(gormmysql.Config{Conn: s.pool})
	}
	return gorm.Open(dialector, &config)
}

// openSQLite fills a file without a journal, and opens it as the README says.
func (s *store) openSQLite(ctx context.Context, bar *progress) error {
	dir, err := os.MkdirTemp("", "gormsessions-bench-")
	if err != nil {
		return err
	}
	s.later(func() error { return os.RemoveAll(dir) })
	file := filepath.Join(dir, "bench.db")
	loading, err := sql.Open("sqlite3", file+"?_journal_mode=OFF&_synchronous=OFF&_cache_size=-1000000")
	if err != nil {
		return err
	}
	loading.SetMaxOpenConns(1)
	s.pool = loading
	if err := errors.Join(s.load(ctx, bar, insertBatches(loading, 500)), loading.Close()); err != nil {
		return err
	}
	if err := s.use(ctx, "sqlite3", file+conformance.SQLiteOptions); err != nil {
		return err
	}
	return s.pool.QueryRowContext(ctx, "SELECT sqlite_version()").Scan(&s.version)
}

func (s *store) openPostgreSQL(ctx context.Context, bar *progress) error {
	dsn := setting("GORMSESSIONS_POSTGRES", "host=127.0.0.1 user=postgres dbname=test sslmode=disable")
	schema := unique()
	err := s.make(ctx, "pgx", dsn, "CREATE SCHEMA "+schema, "DROP SCHEMA "+schema+" CASCADE")
	if err != nil {
		return err
	}
	switch {
	case !strings.Contains(dsn, "://"):
		dsn += " search_path=" + schema
	case strings.Contains(dsn, "?"):
		dsn += "&search_path=" + schema
	default:
		dsn += "?search_path=" + schema
	}
	if err := s.use(ctx, "pgx", dsn); err != nil {
		return err
	}
	config, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return err
	}
	config.MaxConns = int32(s.conns)
	if s.native, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return err
	}
	s.later(func() error { s.native.Close(); return nil })
	if err := s.load(ctx, bar, copyIn(s.native)); err != nil {
		return err
	}
	if _, err := s.pool.ExecContext(ctx, "VACUUM ANALYZE"); err != nil {
		return err
	}
	if err := s.openRedis(ctx, bar); err != nil {
		return err
	}
	return s.pool.QueryRowContext(ctx, "SHOW server_version").Scan(&s.version)
}

func (s *store) openMariaDB(ctx context.Context, bar *progress) error {
	config, err := mysql.ParseDSN(setting("GORMSESSIONS_MYSQL", "root@tcp(127.0.0.1:3306)/test?parseTime=true"))
	if err != nil {
		return err
	}
	config.ParseTime = true
	name := unique()
	err = s.make(ctx, "mysql", config.FormatDSN(), "CREATE DATABASE "+name+" CHARACTER SET utf8mb4", "DROP DATABASE "+name)
	if err != nil {
		return err
	}
	config.DBName = name
	loading := config.Clone()
	loading.Params = map[string]string{"unique_checks": "0", "foreign_key_checks": "0"}
	filling, err := sql.Open("mysql", loading.FormatDSN())
	if err != nil {
		return err
	}
	filling.SetMaxOpenConns(1)
	s.pool = filling
	if err := errors.Join(s.load(ctx, bar, insertBatches(filling, 1000)), filling.Close()); err != nil {
		return err
	}
	if err := s.use(ctx, "mysql", config.FormatDSN()); err != nil {
		return err
	}
	if err := s.openRedis(ctx, bar); err != nil {
		return err
	}
	return s.pool.QueryRowContext(ctx, "SELECT VERSION()").Scan(&s.version)
}

// make runs up now and down at the end, on a connection of their own.
func (s *store) make(ctx context.Context, driver, dsn, up, down string) error {
	admin, err := sql.Open(driver, dsn)
	if err != nil {
		return err
	}
	s.later(admin.Close)
	if _, err := admin.ExecContext(ctx, up); err != nil {
		return err
	}
	s.later(func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		_, err := admin.ExecContext(ctx, down)
		return err
	})
	return nil
}
