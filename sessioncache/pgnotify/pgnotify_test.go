package pgnotify_test

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/internal/conformance"
	"github.com/gormsessions/gormsessions/sessioncache"
	"github.com/gormsessions/gormsessions/sessioncache/pgnotify"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

type User struct {
	ID    uint
	Name  string
	Prefs string `gorm:"type:json;default:'{}'"` // a type without equality
}

type UserSession struct {
	gormsessions.Session[User, uint]
}

var tables = gormsessions.CacheTables{Sessions: "user_sessions", SessionKey: "id", Owners: "users", OwnerKey: "id"}

// schema is one of its own, in which there are sessions and their owners.
type schema struct {
	testing.TB
	dialector gorm.Dialector
	db        *gorm.DB
}

func newSchema(t testing.TB) *schema {
	t.Helper()
	s := &schema{TB: t, dialector: conformance.PostgreSQL().Dialect(t)}
	s.db = s.open()
	if err := s.db.Use(gormsessions.New[UserSession](gormsessions.Config{})); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *schema) open() *gorm.DB {
	s.Helper()
	return conformance.PostgreSQL().Open(s, s.dialector, &gorm.Config{Logger: logger.Discard})
}

func (s *schema) dsn() string { return s.dialector.(*postgres.Dialector).DSN }

func (s *schema) exec(query string, args ...any) {
	s.Helper()
	if err := s.db.Exec(query, args...).Error; err != nil {
		s.Fatal(err)
	}
}

func (s *schema) scan(query string, args ...any) (n int) {
	s.Helper()
	if err := s.db.Raw(query, args...).Scan(&n).Error; err != nil {
		s.Fatal(err)
	}
	return n
}

func (s *schema) migrate() {
	s.Helper()
	if err := pgnotify.New(pgnotify.Config{}).Migrate(s.db, tables); err != nil {
		s.Fatal(err)
	}
}

// create makes a session with an owner.
func (s *schema) create() *UserSession {
	s.Helper()
	var v UserSession
	v.Owner = &User{Name: "Ada"}
	if err := s.db.Create(v.Owner).Error; err != nil {
		s.Fatal(err)
	}
	if err := s.db.Create(&v).Error; err != nil {
		s.Fatal(err)
	}
	return &v
}

// node is a node's cache.
type node struct {
	*sessioncache.Cache
	t   testing.TB
	log *log
}

func (s *schema) node(config pgnotify.Config, lease time.Duration) *node {
	s.Helper()
	n := &node{t: s, log: &log{}}
	var err error
	n.Cache, err = sessioncache.New(sessioncache.Config{
		Bus: pgnotify.New(config), Lease: lease, Logger: slog.New(slog.NewTextHandler(n.log, nil))})
	if err != nil {
		s.Fatal(err)
	}
	if err := n.Open(s.db, tables); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() {
		if err := n.Close(); err != nil {
			s.Error(err)
		}
	})
	return n
}

type log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// until waits for something.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(30 * time.Second); !ok(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func (n *node) serving() {
	n.t.Helper()
	until(n.t, "serving", func() bool { return n.Stats().Serving })
}

func (n *node) bypassed() {
	n.t.Helper()
	until(n.t, "bypassed", func() bool { return !n.Stats().Serving })
}

func key(s *UserSession) gormsessions.CacheKey {
	return gormsessions.CacheKey(slices.Concat(s.ID[:], s.ID[:]))
}

func (n *node) put(s *UserSession) {
	n.t.Helper()
	until(n.t, "it is kept", func() bool { // a busy machine may miss a heartbeat
		n.Put(key(s), s, n.Clock(), gormsessions.SessionTag(s.ID), gormsessions.CacheTag(fmt.Sprint("o", s.OwnerID)))
		return n.has(s)
	})
}

func (n *node) has(s *UserSession) bool { return n.Get(key(s)) != nil }

func (n *node) gone(s *UserSession) {
	n.t.Helper()
	until(n.t, "the change is heard", func() bool { return !n.has(s) })
}

// most says whether most of some sessions are there; tags may share a slot.
func (n *node) most(list []*UserSession) bool {
	n.t.Helper()
	n.serving()
	there := 0
	for _, s := range list {
		if n.has(s) {
			there++
		}
	}
	return there > len(list)/2
}

func TestHearsWhatAnybodyChanges(t *testing.T) {
	s := newSchema(t)
	s.migrate()
	var others []*UserSession
	for range 5 {
		others = append(others, s.create())
	}
	a, b := s.node(pgnotify.Config{}, 0), s.node(pgnotify.Config{DSN: s.dsn()}, 0)
	nodes := []*node{a, b}
	for _, n := range nodes {
		n.serving()
	}
	foreign, err := pgx.Connect(t.Context(), s.dsn()) // as psql does
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := foreign.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	for _, c := range []struct {
		change string // $id is the session's, $owner its owner's
		hears  bool
		all    bool
	}{
		{"UPDATE user_sessions SET revoked_at = now() WHERE id = '$id'", true, false},
		{"DELETE FROM user_sessions WHERE id = '$id'", true, false},
		{"UPDATE user_sessions SET id = gen_random_uuid() WHERE id = '$id'", true, false},
		{"UPDATE users SET name = 'Eve' WHERE id = $owner", true, false},
		{`UPDATE users SET prefs = '{"a": 1}' WHERE id = $owner`, true, false},
		{"DELETE FROM users WHERE id = $owner", true, false},
		{"UPDATE users SET id = id + 1000000 WHERE id = $owner", true, false},
		{"BEGIN; UPDATE users SET name = 'Eve' WHERE id = $owner; COMMIT", true, false},
		{"SET session_replication_role = replica; UPDATE users SET name = 'Eve' WHERE id = $owner; RESET session_replication_role", true, false},
		{"BEGIN; UPDATE users SET name = 'Eve' WHERE id = $owner; ROLLBACK", false, false},
		{"UPDATE users SET name = name, prefs = prefs WHERE id = $owner", false, false},
		{"INSERT INTO users (name) VALUES ('Bob')", false, false},
		{"TRUNCATE user_sessions CASCADE", true, true},
		{"TRUNCATE users CASCADE", true, true},
	} {
		session, marker := s.create(), s.create()
		for _, n := range nodes {
			for _, o := range append(others, session, marker) {
				n.put(o)
			}
		}
		change := strings.NewReplacer("$id", session.ID.String(), "$owner", fmt.Sprint(session.OwnerID)).Replace(c.change)
		if _, err := foreign.Exec(t.Context(), change, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatalf("%s: %v", change, err)
		}
		if !c.hears { // what comes after it does
			if _, err := foreign.Exec(t.Context(), "DELETE FROM user_sessions WHERE id = $1", marker.ID); err != nil {
				t.Fatal(err)
			}
		}
		for _, n := range nodes {
			if c.hears {
				n.gone(session)
			} else if n.gone(marker); !n.most(append(others, session)) {
				t.Errorf("%s: is heard", change)
			}
			if n.most(others) == c.all {
				t.Errorf("%s: ends all others: %v", change, !c.all)
			}
		}
	}
}

func TestSchemasApart(t *testing.T) {
	a, b := newSchema(t), newSchema(t)
	nodes := map[*schema]*node{}
	for _, s := range []*schema{a, b} {
		s.migrate()
		nodes[s] = s.node(pgnotify.Config{}, 0)
		nodes[s].serving()
	}
	mine, other, marker := a.create(), b.create(), b.create()
	nodes[a].put(mine)
	nodes[b].put(other)
	nodes[b].put(marker)
	a.exec("TRUNCATE user_sessions CASCADE")
	nodes[a].gone(mine)
	b.exec("DELETE FROM user_sessions WHERE id = ?", marker.ID)
	nodes[b].gone(marker)
	if !nodes[b].most([]*UserSession{other}) {
		t.Error("a change in one schema ends what is cached of another")
	}
}

func (s *schema) triggers() int {
	s.Helper()
	return s.scan("SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal AND tgenabled = 'A' AND tgrelid IN ('user_sessions'::regclass, 'users'::regclass)")
}

func (s *schema) functions() int {
	s.Helper()
	return s.scan("SELECT count(*) FROM pg_proc WHERE pronamespace = current_schema()::regnamespace")
}

func TestMigrateAndDrop(t *testing.T) {
	s := newSchema(t)
	var wait sync.WaitGroup
	for range 16 {
		db := s.open()
		wait.Go(func() {
			if err := pgnotify.New(pgnotify.Config{}).Migrate(db, tables); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	if got := s.triggers(); got != 4 {
		t.Errorf("%d triggers", got)
	}
	state := func() int {
		return s.scan("SELECT sum(xmin::text::bigint) FROM (SELECT xmin FROM pg_trigger WHERE NOT tgisinternal AND tgrelid IN ('user_sessions'::regclass, 'users'::regclass)" +
			" UNION ALL SELECT xmin FROM pg_proc WHERE pronamespace = current_schema()::regnamespace) x")
	}
	before := state()
	s.migrate()
	if state() != before {
		t.Error("what is there is made anew")
	}
	n := s.node(pgnotify.Config{}, 0)
	channel, err := pgnotify.Channel(s.db, tables)
	if err != nil {
		t.Fatal(err)
	}
	if len(channel) > 63 {
		t.Errorf("%s is cut short", channel)
	}
	for name, statement := range map[string]string{
		"an older version":   "CREATE OR REPLACE FUNCTION " + channel + "_o() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
		"a disabled trigger": "ALTER TABLE users DISABLE TRIGGER " + channel + "_o_row",
		"one of another kind": "DROP TRIGGER " + channel + "_s_row ON user_sessions;" +
			"CREATE TRIGGER " + channel + "_s_row AFTER UPDATE ON user_sessions FOR EACH ROW EXECUTE FUNCTION " + channel + "_s()",
		"one with a condition": "DROP TRIGGER " + channel + "_s_row ON user_sessions;" +
			"CREATE TRIGGER " + channel + "_s_row AFTER UPDATE OR DELETE ON user_sessions FOR EACH ROW WHEN (OLD.id IS NULL) EXECUTE FUNCTION " + channel + "_s()",
		"one of some columns": "DROP TRIGGER " + channel + "_s_row ON user_sessions;" +
			"CREATE TRIGGER " + channel + "_s_row AFTER UPDATE OF data OR DELETE ON user_sessions FOR EACH ROW EXECUTE FUNCTION " + channel + "_s()",
		"a missing trigger": "DROP TRIGGER " + channel + "_o_all ON users",
	} {
		n.serving()
		session := s.create()
		n.put(session)
		for part := range strings.SplitSeq(statement, ";CREATE TRIGGER") {
			if strings.HasPrefix(part, " ") {
				part = "CREATE TRIGGER" + part
			}
			s.exec(part)
		}
		until(t, name+" is noticed", func() bool { return !n.Stats().Serving && strings.Contains(n.log.String(), "call Migrate") })
		s.migrate()
		n.serving()
		if n.has(session) {
			t.Errorf("%s: what was cached before is served", name)
		}
		n.put(session)
		s.exec("UPDATE users SET name = 'Eve' WHERE id = ?", session.OwnerID)
		n.gone(session)
	}
	session := s.create()
	n.put(session)
	if err := pgnotify.New(pgnotify.Config{}).Drop(s.db, tables); err != nil {
		t.Fatal(err)
	}
	n.gone(session)
	n.bypassed()
	if s.triggers() != 0 || s.functions() != 0 {
		t.Errorf("%d triggers and %d functions are left", s.triggers(), s.functions())
	}
	if err := pgnotify.New(pgnotify.Config{}).Drop(s.db, tables); err != nil {
		t.Errorf("dropping twice: %v", err)
	}
}

// TestMigrateInATransaction: it shares its fate.
func TestMigrateInATransaction(t *testing.T) {
	s := newSchema(t)
	tx := s.db.Begin()
	if err := pgnotify.New(pgnotify.Config{}).Migrate(tx, tables); err != nil {
		t.Fatal(err)
	}
	if err := tx.Rollback().Error; err != nil {
		t.Fatal(err)
	}
	if got := s.triggers(); got != 0 {
		t.Errorf("%d triggers", got)
	}
}

// TestWithoutTriggers: a node that found none, as with SkipMigrate, is bypassed,
// says what to do, and serves once it is done.
func TestWithoutTriggers(t *testing.T) {
	s := newSchema(t)
	n := s.node(pgnotify.Config{}, 0)
	until(t, "it says so", func() bool { return strings.Contains(n.log.String(), "pgnotify.Statements") })
	if n.Stats().Serving {
		t.Error("serving without triggers")
	}
	statements, err := pgnotify.Statements(s.db, tables)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // they may be run again
		for _, statement := range statements {
			s.exec(statement)
		}
	}
	n.serving()
	session := s.create()
	n.put(session)
	s.exec("DELETE FROM users WHERE id = ?", session.OwnerID)
	n.gone(session)
	if err := pgnotify.New(pgnotify.Config{}).Migrate(s.db, tables); err != nil {
		t.Error(err)
	}
}

// TestOwnersKeys: what the triggers say of a row is what Go has for its key, or
// all rows.
func TestOwnersKeys(t *testing.T) {
	id := uuid.MustParse("A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11")
	long := strings.Repeat("x", 1000)
	for _, c := range []struct {
		column, value, want string
		noKey               bool
	}{
		{column: "smallint", value: "-7", want: "o-7"},
		{column: "integer", value: "7", want: "o7"},
		{column: "bigint", value: "9223372036854775807", want: "o9223372036854775807"},
		{column: "uuid", value: "'{" + strings.ToUpper(id.String()) + "}'", want: "o" + id.String()},
		{column: "text", value: "'a ''ü'''", want: "oa 'ü'"},
		{column: "varchar(20)", value: "'  x '", want: "o  x "},
		{column: "text", value: "'" + long[:999] + "'", want: "o" + long[:999]},
		{column: "text", value: "'" + long + "'", want: "*"},
		{column: "char(5)", value: "'a'", want: "*"},
		{column: "numeric", value: "1.0", want: "*"},
		{column: "bytea", value: `'\x01'`, want: "*"},
		{column: "timestamptz", value: "now()", want: "*"},
		{column: "mood", value: "'ok'", want: "*"},
		{column: "nocase", value: "'a'", want: "*"},
		{column: `text COLLATE "nocase"`, value: "'a'", want: "*"},
		{column: "bigint", value: "7", want: "*", noKey: true},
	} {
		t.Run(c.column, func(t *testing.T) {
			s := newSchema(t)
			s.exec("CREATE TYPE mood AS ENUM ('ok')")
			s.exec("CREATE DOMAIN nocase AS text")
			s.exec("CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
			s.exec(`CREATE TABLE "odd'ly na""med" ("the' ""key" ` + c.column + ` PRIMARY KEY, n int)`)
			s.exec(`INSERT INTO "odd'ly na""med" VALUES (` + c.value + `, 1)`)
			odd := tables
			odd.Owners, odd.OwnerKey = `odd'ly na"med`, `the' "key`
			if c.noKey {
				odd.OwnerKey = ""
			}
			for range 2 {
				if err := pgnotify.New(pgnotify.Config{}).Migrate(s.db, odd); err != nil {
					t.Fatal(err)
				}
			}
			channel, err := pgnotify.Channel(s.db, odd)
			if err != nil {
				t.Fatal(err)
			}
			conn, err := pgx.Connect(t.Context(), s.dsn())
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := conn.Close(context.Background()); err != nil {
					t.Error(err)
				}
			}()
			for _, statement := range []string{"LISTEN " + channel, `UPDATE "odd'ly na""med" SET n = 2`, `DELETE FROM "odd'ly na""med"`} {
				if _, err := conn.Exec(t.Context(), statement); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				n, err := conn.WaitForNotification(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if n.Payload != c.want {
					t.Errorf("got %q, want %q", n.Payload, c.want)
				}
			}
		})
	}
}

// TestQualifiedTables: where the model names a schema, the search_path is nothing.
func TestQualifiedTables(t *testing.T) {
	s, elsewhere := newSchema(t), newSchema(t)
	var name string
	if err := s.db.Raw("SELECT current_schema()").Scan(&name).Error; err != nil {
		t.Fatal(err)
	}
	qualified := tables
	qualified.Sessions, qualified.Owners = name+".user_sessions", name+".users"
	if err := pgnotify.New(pgnotify.Config{}).Migrate(elsewhere.db, qualified); err != nil {
		t.Fatal(err)
	}
	if s.triggers() != 4 || s.functions() != 2 || elsewhere.triggers() != 0 || elsewhere.functions() != 0 {
		t.Error("the triggers are elsewhere")
	}
	n := s.node(pgnotify.Config{DSN: elsewhere.dsn()}, 0) // its own search_path
	n.serving()
	session := s.create()
	n.put(session)
	elsewhere.exec("DELETE FROM "+name+".user_sessions WHERE id = ?", session.ID)
	n.gone(session)
}

func TestWhatCannotListen(t *testing.T) {
	lite, err := gorm.Open(sqlite.Open(":memory:"), &gorm.Config{Logger: logger.Discard})
	if err != nil {
		t.Fatal(err)
	}
	bus := pgnotify.New(pgnotify.Config{})
	_, statements := pgnotify.Statements(lite, tables)
	for name, err := range map[string]error{
		"Open": bus.Open(lite, tables), "Migrate": bus.Migrate(lite, tables), "Drop": bus.Drop(lite, tables), "Statements": statements,
	} {
		if err == nil || !strings.Contains(err.Error(), "the database is sqlite, not PostgreSQL") {
			t.Errorf("%s: got %v", name, err)
		}
	}

	s := newSchema(t)
	if err := pgnotify.New(pgnotify.Config{DSN: "postgres://%"}).Open(s.db, tables); err == nil || !strings.Contains(err.Error(), "Config.DSN") {
		t.Errorf("a broken DSN: got %v", err)
	}
	config, err := pgx.ParseConfig(s.dsn())
	if err != nil {
		t.Fatal(err)
	}
	pool := sql.OpenDB(wrapped{stdlib.GetConnector(*config)})
	defer func() { _ = pool.Close() }()
	other, err := gorm.Open(postgres.New(postgres.Config{Conn: pool}), &gorm.Config{Logger: logger.Discard})
	if err != nil {
		t.Fatal(err)
	}
	if err := bus.Open(other, tables); err == nil || !strings.Contains(err.Error(), "set Config.DSN") {
		t.Errorf("another driver: got %v", err)
	}
	if err := bus.Open(s.db, tables); err != nil {
		t.Fatal(err)
	}
	if err := bus.Open(s.db, tables); err == nil {
		t.Error("it opens twice")
	}

	s.migrate()
	n := s.node(pgnotify.Config{BeforeConnect: func(_ context.Context, c *pgx.ConnConfig) error {
		c.Database = "postgres" // another one
		return nil
	}}, 0)
	until(t, "it says so", func() bool { return strings.Contains(n.log.String(), "error=") })
	if n.Stats().Serving {
		t.Error("serving by the word of another database")
	}
}

// wrapped is a driver around pgx's.
type wrapped struct{ driver.Connector }

type wrappedConn struct{ driver.Conn }

func (w wrapped) Connect(ctx context.Context) (driver.Conn, error) {
	c, err := w.Connector.Connect(ctx)
	return wrappedConn{c}, err
}
