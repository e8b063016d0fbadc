//go:build !race

package tests

import (
	"crypto/sha256"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/internal/conformance"
	"github.com/mattn/go-sqlite3"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

// Holder is the owner of the sessions of a large table.
type Holder struct {
	ID   uint
	Name string
}

// HeldSession is a session of the README's kind in a large table.
type HeldSession struct {
	gormsessions.Session[Holder, uint]
	Device string
}

// SoftKey is in the same table, with abilities and soft deletion.
type SoftKey struct {
	gormsessions.Session[Holder, uint]
	Device    string
	Abilities gormsessions.Abilities
	DeletedAt gorm.DeletedAt `gorm:"index"`
}

func (SoftKey) TableName() string { return "held_sessions" }

// largeRows is how many sessions a large table has.
func largeRows(fallback int) int {
	if n, err := strconv.Atoi(os.Getenv("GORMSESSIONS_ROWS")); err == nil {
		return n
	}
	return fallback
}

var withSHA256 = sync.OnceFunc(func() {
	sql.Register("sqlite3_sha256", &sqlite3.SQLiteDriver{ConnectHook: func(c *sqlite3.SQLiteConn) error {
		return c.RegisterFunc("sha256", func(text string) []byte { sum := sha256.Sum256([]byte(text)); return sum[:] }, true)
	}})
})

// largeDatabases are the three, SQLite with a function sha256.
func largeDatabases() []conformance.Database {
	withSHA256()
	file := conformance.Database{Name: "sqlite", Dialect: func(t testing.TB) gorm.Dialector {
		return &sqlite.Dialector{DriverName: "sqlite3_sha256", DSN: filepath.Join(t.TempDir(), "test.db") + conformance.SQLiteOptions}
	}}
	return []conformance.Database{conformance.PostgreSQL(), conformance.MariaDB(), file}
}

// pool opens a database without the plugin.
func pool(t testing.TB, d conformance.Database, dialector gorm.Dialector) *sql.DB {
	t.Helper()
	db, err := d.Open(t, dialector, &gorm.Config{Logger: logger.Discard}).DB()
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// What the rows of a large table are like. Row n has the token t<n>, each owner ten.
func expired(n int) bool { return n%10 == 3 } // within the last 30 days; the others in the next 7
func revoked(n int) bool { return n%20 == 7 } // within the last 30 days
func rotated(n int) bool { return n%10 == 5 } // the token r<n> is retired since an hour

var filled = time.Now().UTC().Truncate(time.Microsecond)

// fill makes rows sessions in held_sessions, and their owners and retired tokens. They
// come in the order of their creation, as sessions do. Where that is faster the indexes
// are dropped: Migrate makes them anew.
func fill(t testing.TB, name string, db *sql.DB, rows int) {
	t.Helper()
	const table = "held_sessions"
	if name != "mariadb" {
		for _, column := range []string{"token_digest", "owner_id", "expires_at", "revoked_at"} {
			perform(t, db, "DROP INDEX idx_held_sessions_"+column)
		}
	}
	if name == "postgres" {
		perform(t, db, "ALTER TABLE held_sessions DROP CONSTRAINT fk_held_sessions_owner")
	}
	perform(t, db, "INSERT INTO holders (id, name) "+numbers(0, max(1, rows/10))+" SELECT n + 1, 'somebody' FROM numbers")
	fillSessions(t, name, db, table, rows)
	const step = 200_000
	for from := 0; from < rows; from += step {
		perform(t, db, "INSERT INTO "+table+"_retired_tokens (token_digest, session_id, authenticated_at, retired_at) "+numbers(from, min(step, rows-from))+
			" SELECT "+written(name, "{sha256 r}, {id}, {at -86400}, {at -3600} FROM numbers WHERE n % 10 = 5"))
	}
}

func fillSessions(t testing.TB, name string, db *sql.DB, table string, rows int) {
	t.Helper()
	if name == "sqlite" {
		db.SetMaxOpenConns(1)
		defer db.SetMaxOpenConns(0)
		perform(t, db, "PRAGMA cache_size = -500000")
		defer perform(t, db, "PRAGMA cache_size = -2000")
	}
	const step = 200_000
	for from := 0; from < rows; from += step {
		perform(t, db, "INSERT INTO "+table+" (id, token_digest, data, expires_at, idle_timeout, last_used_at, authenticated_at,"+
			" revoked_at, revoked_reason, created_at, updated_at, owner_id, device) "+numbers(from, min(step, rows-from))+
			written(name, fmt.Sprintf(` SELECT {id}, {sha256 t}, '{}',
				CASE WHEN n %% 10 = 3 THEN {at -1 - n %% 262144 * 7919 %% 2592000} ELSE {at 3600 + n %% 262144 * 7919 %% 604800} END, 604800000000000,
				CASE WHEN n %% 10 = 9 THEN NULL ELSE {at -3600 - n %% 262144 * 31 %% 604800} END, {at -86400},
				CASE WHEN n %% 20 = 7 THEN {at -1 - n %% 262144 * 8191 %% 2592000} END, CASE WHEN n %% 20 = 7 THEN 'signed out' ELSE '' END,
				{at -2592000}, {at -3600}, n %% %d + 1, 'Firefox on Linux' FROM numbers`, max(1, rows/10))))
	}
}

// numbers begins a statement on the numbers n from from on.
func numbers(from, count int) string {
	return fmt.Sprintf("WITH RECURSIVE k (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM k WHERE i < 999),"+
		" numbers (n) AS (SELECT %d + a.i * 1000 + b.i FROM k a CROSS JOIN k b WHERE a.i * 1000 + b.i < %d)", from, count)
}

// written writes what stands in braces as the database has it: the time in so many
// seconds from now, the digest of a token, the ID of row n.
func written(name, text string) string {
	now := filled
	first := now.Add(-30 * 24 * time.Hour).UnixMilli() // IDs are UUIDs of version 7
	replace := map[string][2]string{
		"{at ":     {"(timestamptz '" + now.Format(time.RFC3339) + "' + (", ") * interval '1 second')"},
		"{sha256 ": {"sha256(convert_to('", "' || n, 'UTF8'))"},
	}
	id := fmt.Sprintf("CAST(lpad(to_hex(%d + n / 4), 12, '0') || '7000a000' || lpad(to_hex(n), 12, '0') AS uuid)", first)
	switch name {
	case "mariadb":
		replace["{at "] = [2]string{"(TIMESTAMP'" + now.Format(time.DateTime) + "' + INTERVAL (", ") SECOND)"}
		replace["{sha256 "] = [2]string{"UNHEX(SHA2(CONCAT('", "', n), 256))"}
		hex := fmt.Sprintf("LPAD(LOWER(HEX(%d + n DIV 4)), 12, '0')", first)
		id = "CONCAT(LEFT(" + hex + ", 8), '-', RIGHT(" + hex + ", 4), '-7000-a000-', LPAD(LOWER(HEX(n)), 12, '0'))"
	case "sqlite":
		replace["{at "] = [2]string{"strftime('%Y-%m-%d %H:%M:%S+00:00', '" + now.Format(time.DateTime) + "', (", ") || ' seconds')"}
		replace["{sha256 "] = [2]string{"sha256('", "' || n)"}
		ms := fmt.Sprintf("(%d + n / 4)", first)
		id = "printf('%08x-%04x-7000-a000-%012x', " + ms + " >> 16, " + ms + " & 65535, n)"
	}
	for brace, with := range replace {
		for {
			before, rest, found := strings.Cut(text, brace)
			if !found {
				break
			}
			inner, after, _ := strings.Cut(rest, "}")
			text = before + with[0] + inner + with[1] + after
		}
	}
	return strings.ReplaceAll(text, "{id}", id)
}

// analyze has the database count what is in the tables.
func analyze(t testing.TB, name string, db *sql.DB, tables ...string) {
	t.Helper()
	for _, table := range tables {
		perform(t, db, map[string]string{"postgres": "VACUUM ANALYZE ", "mariadb": "ANALYZE TABLE ", "sqlite": "ANALYZE "}[name]+table)
	}
}

func perform(t testing.TB, db *sql.DB, statement string, args ...any) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), statement, args...); err != nil {
		t.Fatalf("%.200s: %v", statement, err)
	}
}
