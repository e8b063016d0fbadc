//go:build !race

package tests

import (
	"cmp"
	"context"
	"crypto"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/internal/conformance"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

// TestR51Plans runs whatever the library runs on a table of a million sessions, and
// asks the database how it went about each statement: none reads a table from end to
// end but those that count or list the whole of it.
//
// It is left out under -short and -race. GORMSESSIONS_ROWS is another size.
func TestR51Plans(t *testing.T) {
	if testing.Short() {
		t.Skip("a million rows on each database")
	}
	for _, d := range largeDatabases() {
		t.Run(d.Name, func(t *testing.T) {
			t.Parallel()
			p := plans{t: t, d: d, dialector: d.Dialect(t), rows: largeRows(1_000_000)}
			p.db = pool(t, d, p.dialector)
			sessions := gormsessions.New[HeldSession](gormsessions.Config{})
			if err := p.open(&recorded{}, nil).Use(sessions); err != nil {
				t.Fatal(err)
			}
			fill(t, d.Name, p.db, p.rows)
			if err := sessions.Migrate(t.Context()); err != nil {
				t.Fatal(err)
			}
			if d.Name == "sqlite" { // where nothing analyzes by itself
				// To explain alone would not show a connection that the indexes are back.
				perform(t, p.db, "SELECT 1 FROM held_sessions LIMIT 1")
				p.models("as loaded")
			}
			analyze(t, d.Name, p.db, "held_sessions", "held_sessions_retired_tokens", "holders")
			p.models("analyzed")
			p.pruneMuch()

			p.softDelete()
			p.explain("control", recorded{{sql: "SELECT * FROM held_sessions WHERE revoked_reason = 'x'"}}, true)
			p.explain("control", recorded{{sql: "DELETE FROM held_sessions WHERE device = 'x'"}}, true)
			p.explain("control", recorded{{sql: "SELECT id FROM held_sessions ORDER BY id"}}, true)
			p.explain("control", recorded{{sql: "UPDATE held_sessions_retired_tokens SET retired_at = authenticated_at"}}, true)
		})
	}
}

type plans struct {
	t         testing.TB
	d         conformance.Database
	dialector gorm.Dialector
	db        *sql.DB
	rows      int
	row       int           // the last that was used
	pruned    time.Duration // of the 30 days
}

// BenchmarkR51Authenticate looks sessions up in a table of many rows and in one of ten
// thousand, in turns, and asserts that it is by the one index.
//
//	GORMSESSIONS_ROWS=10000000 go -C tests test -run '^$' -bench R51/postgres -benchtime 1x -timeout 2h .
func BenchmarkR51Authenticate(b *testing.B) {
	const few = 10_000
	for _, d := range largeDatabases() {
		b.Run(d.Name, func(b *testing.B) {
			type table struct {
				rows       int
				never, due *gormsessions.Plugin[HeldSession] // the second writes each use
			}
			var tables []table
			for _, rows := range []int{few, largeRows(100_000)} {
				var list recorded
				p := plans{t: b, d: d, dialector: d.Dialect(b), rows: rows}
				p.db = pool(b, d, p.dialector)
				t := table{rows: rows}
				for _, touch := range []time.Duration{gormsessions.Never, 0} {
					sessions := gormsessions.New[HeldSession](gormsessions.Config{AcceptForeign: true, TouchInterval: touch})
					if err := p.open(&list, nil).Use(sessions); err != nil {
						b.Fatal(err)
					}
					if touch == gormsessions.Never {
						t.never = sessions
						fill(b, d.Name, p.db, rows)
						if err := sessions.Migrate(b.Context()); err != nil {
							b.Fatal(err)
						}
						analyze(b, d.Name, p.db, "held_sessions", "held_sessions_retired_tokens", "holders")
					} else {
						t.due = sessions
					}
				}
				tables = append(tables, t)
				for _, scopes := range [][]gormsessions.Scope{nil, {gormsessions.WithOwner}} {
					list = nil
					if _, err := t.never.Authenticate(b.Context(), "t1", scopes...); err != nil || len(list) != 1 {
						b.Fatalf("%d statements, error %v", len(list), err)
					}
					p.explain("Authenticate", list, false)
					explain := map[string]string{"sqlite": "EXPLAIN QUERY PLAN "}[d.Name]
					plan := fmt.Sprint(p.table(cmp.Or(explain, "EXPLAIN ")+list[0].sql, list[0].vars))
					if !strings.Contains(plan, "idx_held_sessions_token_digest") {
						b.Errorf("%d rows: not by the index on the digest: %s", rows, plan)
					}
				}
			}
			text := "| | 10 k µs | many µs | ratio |\n|---|---|---|---|\n"
			for _, way := range []struct {
				name string
				due  bool
				of   int // so many of the rows, over and over
				by   []gormsessions.Scope
			}{
				{"one query, any of ten thousand sessions", false, few, nil},
				{"one query, any session", false, 1 << 40, nil},
				{"one query, any session with its owner", false, 1 << 40, []gormsessions.Scope{gormsessions.WithOwner}},
				{"a query and an extension, any session", true, 1 << 40, nil},
			} {
				var figures [2][]float64
				var ratios []float64
				for round := range 41 {
					var took [2]float64
					for i := range tables {
						which := (i + round) % 2
						t := tables[which]
						sessions := map[bool]*gormsessions.Plugin[HeldSession]{false: t.never, true: t.due}[way.due]
						const calls = 100
						var tokens []string
						for len(tokens) < calls {
							n := mathrand.N(min(way.of, t.rows)) * max(1, t.rows/way.of)
							// Each is due once; the table of ten thousand has enough of them.
							if way.due {
								n = (round*calls + len(tokens)) * 2 * (t.rows / few)
							}
							if expired(n) || revoked(n) {
								n++
							}
							tokens = append(tokens, fmt.Sprint("t", n))
						}
						begin := time.Now()
						for _, token := range tokens {
							if _, err := sessions.Authenticate(b.Context(), token, way.by...); err != nil {
								b.Fatalf("%s: %v", token, err)
							}
						}
						took[which] = float64(time.Since(begin).Microseconds()) / calls
						if round > 0 { // the first warms up
							figures[which] = append(figures[which], took[which])
						}
					}
					if round > 0 {
						ratios = append(ratios, took[1]/took[0])
					}
				}
				text += fmt.Sprintf("| %s | %.0f | %.0f | %.2f |\n", way.name, median(figures[0]), median(figures[1]), median(ratios))
			}
			fmt.Print("\n" + text)
		})
	}
}

// recorded are the statements that a *gorm.DB has run.
type recorded []struct {
	sql  string
	vars []any
}

// open opens the database with a *gorm.DB that records its statements.
func (p *plans) open(list *recorded, set func(*gorm.Config)) *gorm.DB {
	p.t.Helper()
	config := &gorm.Config{Logger: logger.Discard}
	if set != nil {
		set(config)
	}
	db := p.d.Open(p.t, p.dialector, config)
	record := func(db *gorm.DB) {
		if !db.DryRun && db.Statement.SQL.Len() > 0 {
			*list = append(*list, struct {
				sql  string
				vars []any
			}{db.Statement.SQL.String(), slices.Clone(db.Statement.Vars)})
		}
	}
	c := db.Callback()
	for _, err := range []error{
		c.Create().After("gorm:create").Register("test:create", record),
		c.Query().After("gorm:query").Register("test:query", record),
		c.Update().After("gorm:update").Register("test:update", record),
		c.Delete().After("gorm:delete").Register("test:delete", record),
		c.Row().After("gorm:row").Register("test:row", record),
		c.Raw().After("gorm:raw").Register("test:raw", record),
	} {
		if err != nil {
			p.t.Fatal(err)
		}
	}
	return db
}

// models explains both models' statements under the settings that change them.
func (p *plans) models(state string) {
	two := []gormsessions.Hasher{gormsessions.HMAC(crypto.SHA256, make([]byte, 32)), gormsessions.Hash(crypto.SHA256)}
	event := func(context.Context, gormsessions.Event) {}
	for _, v := range []struct {
		name   string
		config gormsessions.Config
		set    func(*gorm.Config)
	}{
		{"defaults", gormsessions.Config{}, nil},
		{"events and a limit", gormsessions.Config{MaxPerOwner: 5, OnEvent: event}, nil},
		{"two hashers, Reject", gormsessions.Config{MaxPerOwner: 50, OnLimit: gormsessions.Reject, Hashers: two}, nil},
		{"no foreign keys", gormsessions.Config{}, func(c *gorm.Config) { c.DisableForeignKeyConstraintWhenMigrating = true }},
	} {
		run(p, state+": "+v.name, v.config, v.set, func(owner uint) *HeldSession {
			s := &HeldSession{}
			s.OwnerID = owner
			return s
		})
	}
}

// softDelete gives the table more columns, and explains the statements of the
// model that has them.
func (p *plans) softDelete() {
	if err := p.open(&recorded{}, nil).Use(gormsessions.New[SoftKey](gormsessions.Config{})); err != nil {
		p.t.Fatal(err)
	}
	perform(p.t, p.db, "UPDATE held_sessions SET abilities = '[\"posts:read\"]', deleted_at = last_used_at WHERE revoked_at IS NOT NULL")
	analyze(p.t, p.d.Name, p.db, "held_sessions")
	run(p, "soft deletion", gormsessions.Config{OnEvent: func(context.Context, gormsessions.Event) {}}, nil, func(owner uint) *SoftKey {
		s := &SoftKey{}
		s.OwnerID = owner
		return s
	})
}

// next is the number of a row that no other statement was about: active, or as is asks.
func (p *plans) next(is func(int) bool) int {
	for {
		p.row++
		n := p.row * 97 % p.rows
		if is == nil && !expired(n) && !revoked(n) && !rotated(n) || is != nil && is(n) {
			return n
		}
	}
}

// run calls all that the library offers, and explains what it ran.
func run[T any, P interface {
	*T
	gormsessions.Model
}](p *plans, name string, config gormsessions.Config, set func(*gorm.Config), of func(owner uint) *T) {
	p.t.Helper()
	var list recorded
	db := p.open(&list, set)
	p.pruned += time.Hour
	// Of a time with more than its six digits MariaDB would read the whole index.
	config.AcceptForeign, config.Retention = true, 30*24*time.Hour-p.pruned+time.Nanosecond
	sessions := gormsessions.New[T, P](config)
	if err := db.Use(sessions); err != nil {
		p.t.Fatal(err)
	}
	ctx := p.t.Context()
	id := func(s *T) uuid.UUID { return P(s).SessionBase().ID }
	token := func() string { return fmt.Sprint("t", p.next(nil)) }
	owner := func() gormsessions.Scope { return gormsessions.ForUser(uint(p.next(nil)%(p.rows/10) + 1)) }
	get := func(is func(int) bool) *T {
		s, err := sessions.Get(ctx, gormsessions.WithToken(fmt.Sprint("t", p.next(is))))
		if err != nil {
			p.t.Fatalf("%s: %v", name, err)
		}
		return s
	}
	authenticate := func(token string, want error, scopes ...gormsessions.Scope) func() error {
		return func() error {
			_, err := sessions.Authenticate(ctx, token, scopes...)
			if want != nil && errors.Is(err, want) {
				return nil
			}
			return err
		}
	}
	listed := func(scopes ...gormsessions.Scope) func() error {
		return func() error {
			if _, err := sessions.List(ctx, scopes...); err != nil {
				return err
			}
			_, err := sessions.Get(ctx, scopes...)
			if err == gormsessions.ErrNoSession {
				return nil
			}
			return err
		}
	}
	counted := func(scopes ...gormsessions.Scope) func() error {
		return func() error { _, err := sessions.Count(ctx, scopes...); return err }
	}
	revoke := func(scopes ...gormsessions.Scope) func() error {
		return func() error { _, err := sessions.Revoke(ctx, "a test", scopes...); return err }
	}
	soon := time.Now().Add(time.Hour)
	lately := gormsessions.UnusedSince(time.Now().Add(-24 * time.Hour))
	ours := owner()
	rotating := get(nil)
	other := token()
	abilities := func(scope gormsessions.Scope) []gormsessions.Scope {
		if _, ok := any(new(T)).(*SoftKey); ok {
			return []gormsessions.Scope{scope, gormsessions.WithAbility("posts:read")}
		}
		return []gormsessions.Scope{scope}
	}

	for _, call := range []struct {
		name  string
		whole bool // it is about the whole table
		run   func() error
	}{
		{"Create", false, func() error { return sessions.Create(ctx, of(1)) }},
		{"Create beyond the limit", false, func() error { return sessions.Create(ctx, of(uint(p.rows/20))) }},
		{"db.Create, two owners", false, func() error { return db.Create([]*T{of(2), of(3), of(3)}).Error }},
		{"Authenticate, due", false, authenticate(other, nil)},
		{"Authenticate, again", false, authenticate(other, nil)},
		{"Authenticate, WithOwner", false, authenticate(token(), nil, gormsessions.WithOwner)},
		{"Authenticate, unknown", false, authenticate("unknown", gormsessions.ErrNoSession)},
		{"Authenticate, expired", false, authenticate(fmt.Sprint("t", p.next(expired)), gormsessions.ErrNoSession)},
		{"Authenticate, revoked", false, authenticate(fmt.Sprint("t", p.next(revoked)), gormsessions.ErrNoSession)},
		{"Authenticate, ability", false, authenticate("unknown", gormsessions.ErrNoSession, abilities(ours)...)},
		{"Authenticate, reused", false, authenticate(fmt.Sprint("r", p.next(rotated)), gormsessions.ErrReused)},
		{"Lookup", false, func() error { _, err := sessions.Lookup(ctx, token()); return err }},
		{"Rotate", false, func() error { return sessions.Rotate(ctx, rotating) }},
		{"Authenticate, in its grace", false, func() error {
			before := fmt.Sprint("t", p.next(nil))
			s, err := sessions.Lookup(ctx, before)
			if err == nil {
				err = sessions.Rotate(ctx, s)
			}
			if err == nil {
				_, err = sessions.Authenticate(ctx, before)
			}
			return err
		}},
		{"Reauthenticate", false, func() error { return sessions.Reauthenticate(ctx, get(nil)) }},
		{"Get by ID", false, func() error { _, err := sessions.Get(ctx, gormsessions.WithID(id(rotating))); return err }},
		{"List, an owner's", false, listed(owner())},
		{"List, an owner's active", false, listed(owner(), gormsessions.Active)},
		{"List, an owner's expired", false, listed(gormsessions.Expired, owner())},
		{"List, an owner's revoked", false, listed(gormsessions.Revoked, owner())},
		{"List, an owner's ended", false, listed(owner(), gormsessions.Ended)},
		{"List, an owner's unused", false, listed(owner(), lately, gormsessions.WithOwner)},
		{"List, an owner's by device", false, listed(owner(), gormsessions.Where(gormsessions.Fields{"Device": "x"}))},
		{"List, an owner's by ability", false, listed(abilities(owner())...)},
		{"Count, an owner's", false, counted(owner())},
		{"Count, an owner's active", false, counted(owner(), gormsessions.Active, gormsessions.Except(P(rotating)))},
		{"Extend", false, func() error { return sessions.Extend(ctx, get(nil)) }},
		{"SetExpiry", false, func() error { return sessions.SetExpiry(ctx, get(nil), &soon) }},
		{"SetExpiry, revalidates", false, func() error { return sessions.SetExpiry(ctx, get(expired), &soon) }},
		{"Revoke, an owner's", false, revoke(owner())},
		{"Revoke by ID", false, revoke(gormsessions.WithID(id(get(nil))))},
		{"Revoke by ID, an owner's", false, revoke(owner(), gormsessions.WithID(id(get(nil))))},
		{"Revoke by token", false, revoke(gormsessions.WithToken(token()))},
		{"Revoke elsewhere", false, revoke(ours, gormsessions.Except(P(rotating)))},
		{"Revoke, an owner's unused", false, revoke(owner(), lately)},
		{"Revoke, an owner's active", false, revoke(owner(), gormsessions.Active)},
		{"db.Update", false, func() error { return db.Model(get(nil)).Update("device", "Chrome").Error }},
		{"db.Save", false, func() error { return db.Save(get(nil)).Error }},
		{"db.Delete", false, func() error { return db.Delete(get(nil)).Error }},
		{"db.Unscoped.Delete", false, func() error { return db.Unscoped().Delete(get(nil)).Error }},
		{"db.Delete, an owner's", false, func() error { return db.Scopes(owner()).Delete(new(T)).Error }},
		{"db.Delete, an owner", false, func() error { return db.Delete(&Holder{ID: uint(p.next(nil)%(p.rows/10) + 1)}).Error }},
		{"Prune", false, func() error {
			n, err := sessions.Prune(ctx)
			if err == nil && n == 0 {
				err = errors.New("nothing to prune")
			}
			return err
		}},

		{"Count", true, counted()},
		{"Count, active", true, counted(gormsessions.Active)},
		{"Count, ended", true, counted(gormsessions.Ended)},
		{"Count, active and unused", true, counted(gormsessions.Active, lately)},
	} {
		list = nil
		if err := call.run(); err != nil {
			p.t.Errorf("%s: %s: %v", name, call.name, err)
		}
		if len(list) == 0 {
			p.t.Errorf("%s: %s: no statement was recorded", name, call.name)
		}
		// Which sessions went, nothing tells then: all retired tokens are looked at.
		lost := db.DisableForeignKeyConstraintWhenMigrating && call.name == "db.Delete, an owner's"
		if !call.whole && !lost {
			p.explain(name+": "+call.name, list, false)
		}
	}
}

// pruneMuch explains the first batches where there is much to prune.
func (p *plans) pruneMuch() {
	p.t.Helper()
	var list recorded
	db := p.open(&list, nil)
	sessions := gormsessions.New[HeldSession](gormsessions.Config{})
	if err := db.Use(sessions); err != nil {
		p.t.Fatal(err)
	}
	list = nil
	ctx, cancel := context.WithCancel(p.t.Context())
	if err := db.Callback().Delete().After("gorm:delete").Register("test:cancel", func(*gorm.DB) {
		if len(list) > 8 {
			cancel()
		}
	}); err != nil {
		p.t.Fatal(err)
	}
	if n, err := sessions.Prune(ctx); !errors.Is(err, context.Canceled) || n == 0 {
		p.t.Errorf("pruned %d, got error %v", n, err)
	}
	p.explain("Prune, much", list, false)
}

const atMost = 2_000 // rows; a batch of Prune has 1,000

// explain asks the database how it goes about each statement, and reports those that
// read a table, or much of one, from end to end; or those that do not.
func (p *plans) explain(what string, list recorded, scan bool) {
	p.t.Helper()
	seen := map[string]bool{}
	for _, s := range list {
		kind, _, _ := strings.Cut(s.sql, " ")
		if seen[s.sql] || strings.HasSuffix(s.sql, " WHERE 1 = 0") || // it only takes SQLite's lock, and reads no row
			!regexp.MustCompile("held_sessions|holders").MatchString(s.sql) ||
			!slices.Contains([]string{"SELECT", "INSERT", "UPDATE", "DELETE"}, kind) {
			continue
		}
		seen[s.sql] = true
		var found []string
		switch p.d.Name {
		case "postgres":
			found = append(p.postgres(s.sql, s.vars), p.generic(s.sql, len(s.vars))...)
		case "mariadb":
			found = p.mariadb(s.sql, s.vars)
		case "sqlite":
			for _, step := range p.table("EXPLAIN QUERY PLAN "+s.sql, s.vars) {
				if regexp.MustCompile(`^SCAN (held_sessions|holders|Owner)`).MatchString(step["detail"]) {
					found = append(found, step["detail"])
				}
			}
		}
		if scan != (len(found) > 0) {
			p.t.Errorf("%s: %s\n\t%s", what, s.sql, strings.Join(found, "\n\t"))
		}
	}
}

// mariadb returns what of a statement's plan reads a whole table or index, or a
// range that no LIMIT ends.
func (p *plans) mariadb(statement string, vars []any) (found []string) {
	if strings.HasPrefix(statement, "INSERT") {
		return nil // it says ALL of what it inserts into
	}
	for _, step := range p.table("EXPLAIN "+statement, vars) {
		var rows int
		_, _ = fmt.Sscan(step["rows"], &rows)
		if step["table"] != "" && (step["type"] == "ALL" || step["type"] == "index" || rows > p.rows/20 && !strings.Contains(statement, " LIMIT ")) {
			found = append(found, fmt.Sprint(step))
		}
	}
	return found
}

// table runs a query and returns its rows as text.
func (p *plans) table(query string, vars []any) (list []map[string]string) {
	p.t.Helper()
	rows, err := p.db.QueryContext(p.t.Context(), query, vars...)
	if err != nil {
		p.t.Fatalf("%s: %v", query, err)
	}
	defer func() { _ = rows.Close() }()
	names, err := rows.Columns()
	if err != nil {
		p.t.Fatal(err)
	}
	for rows.Next() {
		values, into := make([]sql.NullString, len(names)), make([]any, len(names))
		for i := range values {
			into[i] = &values[i]
		}
		if err := rows.Scan(into...); err != nil {
			p.t.Fatal(err)
		}
		row := map[string]string{}
		for i, name := range names {
			row[name] = values[i].String
		}
		list = append(list, row)
	}
	if err := rows.Err(); err != nil {
		p.t.Fatal(err)
	}
	return list
}

// planNode is one of PostgreSQL's plan.
type planNode struct {
	Type    string  `json:"Node Type"`
	Table   string  `json:"Relation Name"`
	Index   string  `json:"Index Name"`
	Cond    string  `json:"Index Cond"`
	Rows    float64 `json:"Actual Rows"` // of each loop
	Removed float64 `json:"Rows Removed by Filter"`
	Checked float64 `json:"Rows Removed by Index Recheck"`
	Loops   float64 `json:"Actual Loops"`
	Plans   []planNode
}

func (n planNode) scans() (found []string) {
	index := strings.Contains(n.Type, "Index") && n.Index != "" && n.Cond == ""
	if n.Type == "Seq Scan" || index || (n.Rows+n.Removed+n.Checked)*n.Loops > atMost {
		found = append(found, fmt.Sprintf("%+v", n))
	}
	for _, plan := range n.Plans {
		found = append(found, plan.scans()...)
	}
	return found
}

// postgres runs a statement in a transaction that is rolled back, and returns what of
// its plan reads a whole table or index, or many rows.
func (p *plans) postgres(statement string, vars []any) []string {
	p.t.Helper()
	tx, err := p.db.BeginTx(p.t.Context(), nil)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	options := "(ANALYZE, TIMING OFF, FORMAT JSON) "
	if strings.HasPrefix(statement, "INSERT") { // it is there already
		options = "(FORMAT JSON) "
	}
	return p.scansOf(tx, "EXPLAIN "+options+statement, vars...)
}

// generic does so for the plan of a prepared statement, for whatever values, without
// running it.
func (p *plans) generic(statement string, vars int) []string {
	p.t.Helper()
	tx, err := p.db.BeginTx(p.t.Context(), nil)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	run := func(statement string) {
		if _, err := tx.ExecContext(p.t.Context(), statement); err != nil {
			p.t.Fatalf("%s: %v", statement, err)
		}
	}
	run("SET LOCAL plan_cache_mode = force_generic_plan")
	run("PREPARE asked AS " + statement)
	values := ""
	if vars > 0 {
		values = "(" + strings.Repeat("NULL, ", vars-1) + "NULL)"
	}
	found := p.scansOf(tx, "EXPLAIN (FORMAT JSON) EXECUTE asked"+values)
	run("DEALLOCATE asked")
	return found
}

func (p *plans) scansOf(tx *sql.Tx, explain string, vars ...any) []string {
	p.t.Helper()
	var text []byte
	if err := tx.QueryRowContext(p.t.Context(), explain, vars...).Scan(&text); err != nil {
		p.t.Fatalf("%s: %v", explain, err)
	}
	var plans []struct{ Plan planNode }
	if err := json.Unmarshal(text, &plans); err != nil {
		p.t.Fatal(err)
	}
	return plans[0].Plan.scans()
}
