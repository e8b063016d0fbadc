package conformance

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/sessiontest"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
	"gorm.io/gorm/schema"
)

// User is an owner with the has-many side, soft deletion, and columns of the
// same names as a session's.
type User struct {
	ID        uint
	Name      string
	ExpiresAt *time.Time
	RevokedAt *time.Time
	CreatedAt time.Time
	DeletedAt gorm.DeletedAt
	Sessions  []UserSession `gorm:"foreignKey:OwnerID"`
}

// UserSession has extra fields of several kinds.
type UserSession struct {
	gormsessions.Session[User, uint]
	Device string `gorm:"size:100;index"`
	Nick   *string
	Visits int `gorm:"not null"`
}

// Variant is a way to set GORM up.
type Variant struct {
	Name  string
	Setup func(*gorm.Config)
}

var (
	plain    = Variant{"default", func(*gorm.Config) {}}
	settings = []Variant{
		{"PrepareStmt", func(c *gorm.Config) { c.PrepareStmt = true }},
		{"SkipDefaultTransaction", func(c *gorm.Config) { c.SkipDefaultTransaction = true }},
		{"TranslateError", func(c *gorm.Config) { c.TranslateError = true }},
		{"DisableNestedTransaction", func(c *gorm.Config) { c.DisableNestedTransaction = true }},
		{"CreateBatchSize", func(c *gorm.Config) { c.CreateBatchSize = 2 }},
		{"TablePrefix", func(c *gorm.Config) {
			c.NamingStrategy = schema.NamingStrategy{TablePrefix: "app_", SingularTable: true, IdentifierMaxLength: 63}
		}},
	}
)

// Variants are the ways to set GORM up that the suite must pass under on d: on
// SQLite's file each setting alone, on a server several together, for time.
func Variants(d Database) []Variant {
	switch d.Name {
	case "memory":
		return []Variant{plain}
	case "postgres", "mariadb":
		return []Variant{plain, together(settings[:3]...), together(settings[3:]...)}
	}
	return append([]Variant{plain}, settings...)
}

func together(list ...Variant) Variant {
	names := make([]string, len(list))
	for i, v := range list {
		names[i] = v.Name
	}
	return Variant{strings.Join(names, "+"), func(c *gorm.Config) {
		for _, v := range list {
			v.Setup(c)
		}
	}}
}

type suite struct {
	Database
	Variant
}

// Run runs the suite on one database under one way to set GORM up.
func Run(t *testing.T, d Database, v Variant) {
	s := suite{d, v}
	for _, test := range []struct {
		name  string
		run   func(suite, *testing.T)
		every bool // under every variant, not only GORM's defaults
	}{
		{"life", suite.life, true},
		{"owner", suite.owner, true},
		{"doors", suite.doors, true},
		{"guards", suite.guards, true},
		{"scopes", suite.scopes, true},
		{"stored", suite.stored, true},
		{"times", suite.times, true},
		{"rotate", suite.rotate, true},
		{"limit", suite.limit, true},
		{"cache", suite.cache, true},
		{"direct", suite.direct, true},
		{"prune", suite.prune, false},
		{"events", suite.events, true},
		{"token", suite.token, false},
		{"secrets", suite.secrets, false},
		{"races", suite.races, false},
		{"fields", suite.fields, false},
		{"abilities", suite.abilities, false},
		{"migrate", suite.migrate, false},
		{"config", suite.config, false},
		{"naive", suite.naive, false},
	} {
		if test.every || v.Name == plain.Name {
			t.Run(test.name, func(t *testing.T) { test.run(s, t) })
		}
	}
}

// newClock is a NowFunc that only moves when told.
func newClock() *sessiontest.Clock {
	return sessiontest.NewClock(time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC))
}

// recorder is a logger that keeps the statements it is told of while it is asked.
type recorder struct {
	mu         sync.Mutex
	asked      int
	statements []string
	warnings   []string
}

func (r *recorder) LogMode(logger.LogLevel) logger.Interface { return r }

func (r *recorder) Info(context.Context, string, ...any) {}

func (r *recorder) Warn(_ context.Context, format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.warnings = append(r.warnings, fmt.Sprintf(format, args...))
}

func (r *recorder) Error(context.Context, string, ...any) {}

func (r *recorder) Trace(_ context.Context, _ time.Time, statement func() (string, int64), _ error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.asked > 0 {
		sql, _ := statement()
		r.statements = append(r.statements, sql)
	}
}

// since runs fn and returns the statements that it ran.
func (r *recorder) since(fn func()) []string {
	r.mu.Lock()
	before := len(r.statements)
	r.asked++
	r.mu.Unlock()
	fn()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked--
	return append([]string(nil), r.statements[before:]...)
}

// env is a database with the plugin for UserSession, and a user.
type env struct {
	t        *testing.T
	ctx      context.Context
	db       *gorm.DB
	dialect  gorm.Dialector
	sessions *gormsessions.Plugin[UserSession]
	clock    *sessiontest.Clock
	log      *recorder
	user     User
}

// open opens a new database, without the plugin.
func (s suite) open(t *testing.T) (*gorm.DB, gorm.Dialector, *sessiontest.Clock, *recorder) {
	t.Helper()
	dialect, c, log := s.Dialect(t), newClock(), &recorder{}
	return s.again(t, dialect, c, log), dialect, c, log
}

// again opens a database once more, as another node would.
func (s suite) again(t *testing.T, dialect gorm.Dialector, c *sessiontest.Clock, log logger.Interface) *gorm.DB {
	t.Helper()
	config := &gorm.Config{NowFunc: c.Now, Logger: log}
	s.Setup(config)
	return s.Open(t, dialect, config)
}

func (s suite) start(t *testing.T, config gormsessions.Config) *env {
	t.Helper()
	db, dialect, c, log := s.open(t)
	e := &env{t: t, ctx: t.Context(), db: db, dialect: dialect, clock: c, log: log, sessions: gormsessions.New[UserSession](config)}
	must(t, db.Use(e.sessions))
	e.user = e.newUser("ada")
	return e
}

func (e *env) newUser(name string) User {
	e.t.Helper()
	u := User{Name: name}
	must(e.t, e.db.Create(&u).Error)
	return u
}

// sign creates a session of the user's, after edit.
func (e *env) sign(edit ...func(*UserSession)) *UserSession {
	e.t.Helper()
	s := &UserSession{Device: "Firefox"}
	s.OwnerID = e.user.ID
	for _, fn := range edit {
		fn(s)
	}
	must(e.t, e.db.Create(s).Error)
	return s
}

func (e *env) authenticate(s *UserSession, scopes ...gormsessions.Scope) *UserSession {
	e.t.Helper()
	got, err := e.sessions.Authenticate(e.ctx, string(s.Token), scopes...)
	must(e.t, err)
	return got
}

// refused asserts that no door lets the token in.
func (e *env) refused(token gormsessions.Token) {
	e.t.Helper()
	if _, err := e.sessions.Authenticate(e.ctx, string(token)); err != gormsessions.ErrNoSession {
		e.t.Errorf("Authenticate: got %v, want ErrNoSession", err)
	}
	if _, err := e.sessions.Lookup(e.ctx, string(token)); err != gormsessions.ErrNoSession {
		e.t.Errorf("Lookup: got %v, want ErrNoSession", err)
	}
}

// row is the session as it is stored.
func (e *env) row(id uuid.UUID) *UserSession {
	e.t.Helper()
	s, err := e.sessions.Get(e.ctx, gormsessions.WithID(id))
	must(e.t, err)
	return s
}

func (e *env) count(scopes ...gormsessions.Scope) int64 {
	e.t.Helper()
	n, err := e.sessions.Count(e.ctx, scopes...)
	must(e.t, err)
	return n
}

// exec runs SQL of the test's own on the sessions' table, written as {t}.
func (e *env) exec(sql string, args ...any) {
	e.t.Helper()
	must(e.t, e.db.Exec(strings.ReplaceAll(sql, "{t}", tableOf(e.t, e.db, &UserSession{})), args...).Error)
}

func tableOf(t testing.TB, db *gorm.DB, model any) string {
	t.Helper()
	stmt := &gorm.Statement{DB: db}
	must(t, stmt.Parse(model))
	return stmt.Schema.Table
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func want[V comparable](t testing.TB, what string, got, want V) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func wantErr(t testing.TB, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: got error %v, want %v", what, got, want)
	}
}

func wantText(t testing.TB, what string, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: got no error, want one that says %q", what, parts)
		return
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%s: got error %q, want it to say %q", what, err, part)
		}
	}
}

func wantTime(t testing.TB, what string, got *time.Time, want time.Time) {
	t.Helper()
	if got == nil || !got.Equal(want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func ptr[V any](v V) *V { return &v }
