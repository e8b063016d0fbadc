//go:build !race

package tests

import (
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"fmt"
	mathrand "math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/internal/conformance"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

// large is a table of sessions that copies are made of.
type large struct {
	*testing.B
	name string
	db   *sql.DB
	rows int
}

func newLarge(b *testing.B, d conformance.Database, rows int) large {
	b.Helper()
	dialector := d.Dialect(b)
	if err := d.Open(b, dialector, &gorm.Config{Logger: logger.Discard}).Use(gormsessions.New[HeldSession](gormsessions.Config{})); err != nil {
		b.Fatal(err)
	}
	l := large{b, d.Name, pool(b, d, dialector), rows}
	if d.Name == "sqlite" {
		l.db.SetMaxOpenConns(1)
		l.exec("PRAGMA foreign_keys = off") // the copies' owners are nowhere
		l.exec("PRAGMA wal_autocheckpoint = 0")
	}
	return l
}

func (l large) exec(statement string, args ...any) {
	l.Helper()
	perform(l, l.db, statement, args...)
}

// copyOf makes a table like that of the sessions, without the index on a column.
func (l large) copyOf(table, without, options string) {
	l.Helper()
	switch l.name {
	case "postgres":
		l.exec("CREATE TABLE " + table + " (LIKE held_sessions INCLUDING ALL) " + options)
		if without != "" {
			l.exec("DROP INDEX " + table + "_" + without + "_idx")
		}
	case "mariadb":
		l.exec("CREATE TABLE " + table + " LIKE held_sessions")
		if without != "" {
			l.exec("ALTER TABLE " + table + " DROP INDEX idx_held_sessions_" + without)
		}
	case "sqlite":
		rows, err := l.db.QueryContext(l.Context(), "SELECT sql FROM sqlite_master WHERE tbl_name = 'held_sessions' AND sql IS NOT NULL ORDER BY type DESC")
		if err != nil {
			l.Fatal(err)
		}
		var list []string
		for rows.Next() {
			var text string
			if err := rows.Scan(&text); err != nil {
				l.Fatal(err)
			}
			list = append(list, text)
		}
		if err := rows.Err(); err != nil {
			l.Fatal(err)
		}
		for _, text := range list {
			if without == "" || !strings.Contains(text, "held_sessions_"+without) {
				l.exec(strings.ReplaceAll(text, "held_sessions", table))
			}
		}
	}
	fillSessions(l, l.name, l.db, table, l.rows)
	analyze(l, l.name, l.db, table)
}

// number asks for one.
func (l large) number(query string, args ...any) (n float64) {
	l.Helper()
	if err := l.db.QueryRowContext(l.Context(), query, args...).Scan(&n); err != nil {
		l.Fatalf("%s: %v", query, err)
	}
	return n
}

// size is that of an index in MB.
func (l large) size(table, column string) float64 {
	switch l.name {
	case "postgres":
		return l.number("SELECT pg_relation_size($1::regclass)", table+"_"+column+"_idx") / 1e6
	case "mariadb":
		return l.number("SELECT stat_value * @@innodb_page_size FROM mysql.innodb_index_stats WHERE database_name = DATABASE()"+
			" AND table_name = ? AND index_name = ? AND stat_name = 'size'", table, "idx_held_sessions_"+column) / 1e6
	}
	before := l.number("PRAGMA freelist_count")
	l.exec("DROP INDEX idx_" + table + "_" + column)
	return (l.number("PRAGMA freelist_count") - before) * l.number("PRAGMA page_size") / 1e6
}

func (l large) prepare(statement string) *sql.Stmt {
	l.Helper()
	if l.name == "postgres" {
		n := 0
		statement = regexp.MustCompile(`\?`).ReplaceAllStringFunc(statement, func(string) string { n++; return "$" + strconv.Itoa(n) })
	}
	stmt, err := l.db.PrepareContext(l.Context(), statement)
	if err != nil {
		l.Fatalf("%s: %v", statement, err)
	}
	return stmt
}

// writes are an INSERT and an extension of one table.
type writes struct{ insert, extend *sql.Stmt }

func (l large) writesTo(table string) writes {
	return writes{
		l.prepare("INSERT INTO " + table + " (id, token_digest, data, expires_at, idle_timeout, authenticated_at, revoked_reason, created_at, updated_at, owner_id, device)" +
			" VALUES (?, ?, '{}', ?, 604800000000000, ?, '', ?, ?, ?, 'Firefox on Linux')"),
		l.prepare("UPDATE " + table + " SET last_used_at = ?, expires_at = ?, updated_at = ? WHERE id = ? AND COALESCE(revoked_at, NULL) IS NULL" +
			" AND (expires_at IS NULL OR expires_at > ?)"),
	}
}

const inBatch = 200

// batch runs one kind of write so many times in a transaction, and returns what each
// took, in µs, and wrote to PostgreSQL's log.
func (l large) batch(stmt *sql.Stmt, args [][]any) (took, logged float64) {
	l.Helper()
	lsn := func() float64 {
		if l.name != "postgres" {
			return 0
		}
		return l.number("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')")
	}
	from := lsn()
	begin := time.Now()
	tx, err := l.db.BeginTx(l.Context(), nil)
	if err != nil {
		l.Fatal(err)
	}
	in := tx.StmtContext(l.Context(), stmt)
	for _, row := range args {
		if _, err := in.ExecContext(l.Context(), row...); err != nil {
			l.Fatal(err)
		}
	}
	if err := tx.Commit(); err != nil {
		l.Fatal(err)
	}
	if l.name == "sqlite" { // each batch pays for what it wrote
		l.exec("PRAGMA wal_checkpoint")
	}
	return float64(time.Since(begin).Microseconds()) / inBatch, (lsn() - from) / inBatch
}

func (l large) rowsToInsert() [][]any {
	list := make([][]any, inBatch)
	for i := range list {
		digest := make([]byte, 32)
		_, _ = rand.Read(digest)
		now := time.Now().UTC().Truncate(time.Microsecond)
		list[i] = []any{uuid.Must(uuid.NewV7()).String(), digest, now.Add(7 * 24 * time.Hour), now, now, now, mathrand.N(l.rows/10) + 1}
	}
	return list
}

func (l large) rowsToExtend() [][]any {
	list := make([][]any, inBatch)
	for i := range list {
		n := mathrand.N(l.rows)
		ms := filled.Add(-30*24*time.Hour).UnixMilli() + int64(n/4) // as written has it
		id := fmt.Sprintf("%08x-%04x-7000-a000-%012x", ms>>16, ms&0xffff, n)
		now := time.Now().UTC().Truncate(time.Microsecond)
		list[i] = []any{now, now.Add(7 * 24 * time.Hour), now, id, now}
	}
	return list
}

func median(list []float64) float64 {
	list = slices.Sorted(slices.Values(list))
	return list[len(list)/2]
}

// BenchmarkIndexes measures for each index what it takes, what it costs a write, and
// what is slow without it, on a copy of the table that lacks it; in turns.
//
//	GORMSESSIONS_ROWS=1000000 go -C tests test -run '^$' -bench Indexes -benchtime 1x -timeout 1h .
func BenchmarkIndexes(b *testing.B) {
	rows := largeRows(20_000)
	for _, d := range largeDatabases() {
		b.Run(d.Name, func(b *testing.B) {
			l := newLarge(b, d, rows)
			l.copyOf("complete", "", "")
			full := l.writesTo("complete")
			text := "| index | MB | INSERT µs | without | extension µs | without | slow without it | ms | without |\n|" + strings.Repeat("---|", 9) + "\n"
			wal := "| index | INSERT's WAL bytes | without | extension's | without |\n|" + strings.Repeat("---|", 5) + "\n"
			for _, index := range []struct{ column, statement, query string }{
				{"token_digest", "Authenticate", "SELECT id FROM {t} WHERE token_digest = ?"},
				{"owner_id", "an owner's list", "SELECT id FROM {t} WHERE owner_id = ? ORDER BY created_at DESC, id DESC"},
				{"expires_at", "a batch of Prune", "SELECT id, expires_at FROM {t} WHERE expires_at <= ? ORDER BY expires_at LIMIT 100"},
				{"revoked_at", "a batch of Prune", "SELECT id, revoked_at FROM {t} WHERE revoked_at <= ? ORDER BY revoked_at LIMIT 100"},
			} {
				l.copyOf("lean", index.column, "")
				lean := l.writesTo("lean")
				var figures [2][4][]float64 // full and lean: INSERT, its WAL, extension, its WAL
				if l.name == "postgres" {
					l.exec("CHECKPOINT") // both write whole pages to the log from here on
				}
				const warmUp = 10 // rounds; the newer table is the warmer
				for round := range warmUp + 31 {
					insert, extend := l.rowsToInsert(), l.rowsToExtend()
					for i := range 2 {
						which := (i + round) % 2
						to := []writes{full, lean}[which]
						a, aWAL := l.batch(to.insert, insert)
						c, cWAL := l.batch(to.extend, extend)
						for kind, v := range []float64{a, aWAL, c, cWAL} {
							if round < warmUp {
								continue
							}
							figures[which][kind] = append(figures[which][kind], v)
						}
					}
				}
				var ask [2]float64
				for which, table := range []string{"complete", "lean"} {
					stmt := l.prepare(strings.ReplaceAll(index.query, "{t}", table))
					var times []float64
					for range 11 {
						var arg any = filled.Add(-29 * 24 * time.Hour)
						switch index.column {
						case "owner_id":
							arg = mathrand.N(rows/10) + 1
						case "token_digest":
							arg = make([]byte, 32)
						}
						begin := time.Now()
						found, err := stmt.QueryContext(b.Context(), arg)
						if err != nil {
							b.Fatal(err)
						}
						for found.Next() {
							continue
						}
						if err := found.Err(); err != nil {
							b.Fatal(err)
						}
						times = append(times, float64(time.Since(begin).Microseconds())/1000)
					}
					ask[which] = median(times)
				}
				f := func(which, kind int) float64 { return median(figures[which][kind]) }
				text += fmt.Sprintf("| `%s` | {%s} | %.0f | %.0f | %.0f | %.0f | %s | %.2f | %.1f |\n", index.column, index.column,
					f(0, 0), f(1, 0), f(0, 2), f(1, 2), index.statement, ask[0], ask[1])
				wal += fmt.Sprintf("| `%s` | %.0f | %.0f | %.0f | %.0f |\n", index.column, f(0, 1), f(1, 1), f(0, 3), f(1, 3))
				l.exec("DROP TABLE lean")
			}
			for _, column := range []string{"token_digest", "owner_id", "expires_at", "revoked_at"} {
				text = strings.ReplaceAll(text, "{"+column+"}", fmt.Sprintf("%.1f", l.size("complete", column)))
			}
			if l.name == "postgres" {
				text += "\n" + wal
			}
			fmt.Print("\n" + text) // a benchmark's log is cut after ten lines
		})
	}
}

// BenchmarkHOT extends each session of a PostgreSQL table five times, a random
// twentieth at once, and vacuums after each fifth, as autovacuum does by default; with
// several fillfactors, and with other indexes on the expiry than the one that Migrate
// makes.
//
//	GORMSESSIONS_ROWS=200000 go -C tests test -run '^$' -bench HOT -benchtime 1x -timeout 1h .
func BenchmarkHOT(b *testing.B) {
	for _, v := range []struct {
		name, index string
		moves       bool // the expiry
		fillfactors []int
	}{
		{"btree", "B-tree", true, []int{100, 90, 80}},
		{"fixed", "B-tree, an expiry that no use moves", false, []int{100, 90, 80}},
		{"brin", "BRIN", true, []int{100, 90}},
		{"none", "none", true, []int{100, 90, 80}},
	} {
		b.Run(v.name, func(b *testing.B) {
			l := newLarge(b, conformance.PostgreSQL(), largeRows(20_000))
			l.db.SetMaxOpenConns(1) // whose statistics are flushed
			text := "| on expires_at | fillfactor | HOT | table MB | after | its indexes MB | after | µs an extension | WAL bytes | a batch of Prune ms |\n|" + strings.Repeat("---|", 10) + "\n"
			for _, fillfactor := range v.fillfactors {
				text += l.hot(v.index, v.moves, fillfactor)
			}
			fmt.Print("\n" + text)
		})
	}
}

// hot is a row of BenchmarkHOT.
func (l large) hot(index string, moves bool, fillfactor int) string {
	l.Helper()
	without := map[bool]string{true: "expires_at"}[!strings.HasPrefix(index, "B-tree")]
	l.copyOf("t", without, fmt.Sprintf("WITH (fillfactor = %d, autovacuum_enabled = off)", fillfactor))
	if index == "BRIN" {
		l.exec("CREATE INDEX ON t USING brin (expires_at)")
	}
	sizes := func() (table, indexes float64) {
		return l.number("SELECT pg_relation_size('t')") / 1e6, l.number("SELECT pg_indexes_size('t')") / 1e6
	}
	table, indexes := sizes()
	set := "last_used_at = now(), updated_at = now()"
	if moves {
		set += ", expires_at = now() + interval '7 days'"
	}
	var took, logged float64
	for step := range 100 {
		var text []byte
		if err := l.db.QueryRowContext(l.Context(), fmt.Sprintf("EXPLAIN (ANALYZE, WAL, TIMING OFF, FORMAT JSON) UPDATE t SET %s"+
			" WHERE abs(hashtextextended(id::text, %d)) %% 20 = %d", set, step/20, step%20)).Scan(&text); err != nil {
			l.Fatal(err)
		}
		var plans []struct {
			Plan struct {
				Bytes float64 `json:"WAL Bytes"`
			}
			Time float64 `json:"Execution Time"`
		}
		if err := json.Unmarshal(text, &plans); err != nil {
			l.Fatal(err)
		}
		took, logged = took+plans[0].Time*1000, logged+plans[0].Plan.Bytes
		if step%4 == 3 {
			l.exec("VACUUM t")
		}
	}
	l.exec("SELECT pg_stat_force_next_flush()")
	updated := l.number("SELECT n_tup_upd FROM pg_stat_user_tables WHERE relid = 't'::regclass")
	hot := l.number("SELECT n_tup_hot_upd FROM pg_stat_user_tables WHERE relid = 't'::regclass")
	tableAfter, indexesAfter := sizes()
	l.exec("ANALYZE t")
	var prune []float64
	for range 11 {
		begin := time.Now()
		l.exec("SELECT id, expires_at FROM t WHERE expires_at <= $1 ORDER BY expires_at LIMIT 100", filled.Add(-time.Hour))
		prune = append(prune, float64(time.Since(begin).Microseconds())/1000)
	}
	l.exec("DROP TABLE t")
	return fmt.Sprintf("| %s | %d | %.0f %% | %.0f | %.0f | %.0f | %.0f | %.1f | %.0f | %.1f |\n", index, fillfactor, 100*hot/updated,
		table, tableAfter, indexes, indexesAfter, took/updated, logged/updated, median(prune))
}
