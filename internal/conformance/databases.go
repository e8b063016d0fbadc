// Package conformance is the one suite of tests that gormsessions passes on
// every database. The root package runs it on SQLite, PostgreSQL and MariaDB;
// the nested module tests/ runs it through other drivers.
package conformance

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gorm.io/driver/mysql"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

// Database opens empty databases of one kind, each of its own and removed when
// the test ends.
type Database struct {
	Name string
	// Dialect returns a dialector for a new, empty database. It may be opened
	// several times.
	Dialect func(t testing.TB) gorm.Dialector
	// Conns limits the pool.
	Conns int
	// Prepare, if set, is called with each *gorm.DB that is opened.
	Prepare func(t testing.TB, db *gorm.DB, dialector gorm.Dialector)
}

// Open opens db with config.
func (d Database) Open(t testing.TB, dialector gorm.Dialector, config *gorm.Config) *gorm.DB {
	t.Helper()
	db, err := gorm.Open(dialector, config)
	if err != nil {
		t.Fatalf("open %s: %v", d.Name, err)
	}
	pool, err := db.DB()
	if err != nil {
		t.Fatal(err)
	}
	pool.SetMaxOpenConns(d.Conns)
	if db.Name() == "sqlite" { // a server has connections for all tests only if they give them back
		pool.SetMaxIdleConns(d.Conns)
	}
	t.Cleanup(func() { _ = pool.Close() })
	if d.Prepare != nil {
		d.Prepare(t, db, dialector)
	}
	return db
}

// A SQLite file is opened as the README tells to.
const (
	SQLiteOptions = "?_foreign_keys=on&_journal_mode=WAL&_busy_timeout=5000&_txlock=immediate"
	SQLiteConns   = 8
)

// SQLiteFile is SQLite in a file, through cgo.
func SQLiteFile() Database {
	return Database{Name: "sqlite", Conns: SQLiteConns, Dialect: func(t testing.TB) gorm.Dialector {
		return sqlite.Open(filepath.Join(t.TempDir(), "test.db") + SQLiteOptions)
	}}
}

// SQLiteMemory is SQLite in memory, with one connection.
func SQLiteMemory() Database {
	return Database{Name: "memory", Conns: 1, Dialect: func(t testing.TB) gorm.Dialector {
		return sqlite.Open("file:" + unique() + "?mode=memory&cache=shared&_foreign_keys=on")
	}}
}

// PostgreSQL is the server that GORMSESSIONS_POSTGRES names.
func PostgreSQL() Database {
	return Database{Name: "postgres", Conns: 20, Dialect: func(t testing.TB) gorm.Dialector {
		t.Helper()
		dsn := setting("GORMSESSIONS_POSTGRES", "host=127.0.0.1 user=postgres dbname=test sslmode=disable")
		name := unique()
		admin(t, postgres.Open(dsn), "PostgreSQL", "docker run -e POSTGRES_HOST_AUTH_METHOD=trust -e POSTGRES_DB=test -p 5432:5432 postgres",
			"CREATE SCHEMA "+name, "DROP SCHEMA "+name+" CASCADE")
		return postgres.Open(pgOption(pgOption(dsn, "search_path", name), "synchronous_commit", "off"))
	}}
}

func pgOption(dsn, name, value string) string {
	switch {
	case !strings.Contains(dsn, "://"):
		return dsn + " " + name + "=" + value
	case strings.Contains(dsn, "?"):
		return dsn + "&" + name + "=" + value
	}
	return dsn + "?" + name + "=" + value
}

// MariaDB is the server that GORMSESSIONS_MYSQL names, MySQL as well.
func MariaDB() Database {
	return Database{Name: "mariadb", Conns: 20, Dialect: func(t testing.TB) gorm.Dialector {
		t.Helper()
		dsn := setting("GORMSESSIONS_MYSQL", "root@tcp(127.0.0.1:3306)/test?parseTime=true")
		name := unique()
		admin(t, mysql.Open(dsn), "MariaDB", "docker run -e MARIADB_ALLOW_EMPTY_ROOT_PASSWORD=1 -e MARIADB_DATABASE=test -p 3306:3306 mariadb",
			"CREATE DATABASE "+name, "DROP DATABASE "+name)
		address, options, _ := strings.Cut(dsn, "?")
		return mysql.Open(address[:strings.LastIndexByte(address, '/')+1] + name + "?" + options)
	}}
}

func setting(name, fallback string) string {
	if s := os.Getenv(name); s != "" {
		return s
	}
	return fallback
}

// admin runs up now, and down when the test ends, or skips the test where there
// is no such server.
func admin(t testing.TB, dialector gorm.Dialector, server, start, up, down string) {
	t.Helper()
	db, err := gorm.Open(dialector, &gorm.Config{Logger: logger.Discard})
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is not reachable: %v", server, err)
		}
		t.Skipf("%s is not reachable; start one with: %s", server, start)
	}
	if err := db.Exec(up).Error; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Exec(down).Error; err != nil {
			t.Errorf("clean up: %v", err)
		}
		if pool, err := db.DB(); err == nil {
			_ = pool.Close()
		}
	})
}

func unique() string { return "gormsessions_" + strings.ToLower(rand.Text()[:12]) }

// Long reports whether the long counts are asked for: CI sets GORMSESSIONS_LONG.
func Long() bool { return os.Getenv("GORMSESSIONS_LONG") != "" }

// count is few rounds, or many in a long run, which SQLite makes once, in a file.
func (s suite) count(few, many int) int {
	if Long() && s.Database.Name != "memory" {
		return many
	}
	return few
}
