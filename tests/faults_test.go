package tests

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/internal/conformance"
	"github.com/gormsessions/gormsessions/sessiontest"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

// The ways in which a call to a driver fails.
type fault string

const (
	refused   fault = "the statement is refused"      // and the connection stays
	cut       fault = "the connection is lost before" // the call has come to the database
	unheard   fault = "the answer is lost"            // of a call that is done
	retriable fault = "driver.ErrBadConn"             // which database/sql tries again
)

var errFault = errors.New("the test's fault")

// faults is a driver whose k-th call fails, or all from the k-th on.
type faults struct {
	driver.Connector
	mu    sync.Mutex
	how   fault
	k     int // 0: none fails
	onto  bool
	calls int
}

// set has the k-th call from now fail.
func (f *faults) set(k int, how fault, onto bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls, f.k, f.how, f.onto = 0, k, how, onto
}

// clear ends the faults, and reports whether there was one.
func (f *faults) clear() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	met := f.k > 0 && f.calls >= f.k
	f.k = 0
	return met
}

// next counts a call, and says how it fails.
func (f *faults) next() fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	if f.k > 0 && (f.calls == f.k || f.onto && f.calls > f.k) {
		return f.how
	}
	return ""
}

func (f *faults) Connect(ctx context.Context) (driver.Conn, error) {
	if how := f.next(); how != "" {
		return nil, errFault
	}
	conn, err := f.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &faultyConn{Conn: conn, faults: f}, nil
}

// faultyConn is a connection of such a driver. Once it is lost it stays so.
type faultyConn struct {
	driver.Conn
	faults     *faults
	lost       bool
	statements []driver.Stmt
}

// Close ends all that a server would end: database/sql forgets what was prepared in a
// transaction whose connection is lost, and SQLite then keeps its locks.
func (c *faultyConn) Close() error {
	if c.lost {
		for _, s := range c.statements {
			_ = s.Close()
		}
	}
	return c.Conn.Close()
}

// call does one call, or fails it.
func (c *faultyConn) call(do func() error) error {
	if c.lost {
		return driver.ErrBadConn
	}
	switch how := c.faults.next(); how {
	case refused:
		return errFault
	case cut, retriable:
		c.lost = true
		if how == retriable {
			return driver.ErrBadConn
		}
		return errFault
	case unheard:
		c.lost = true
		_ = do()
		return errFault
	}
	return do()
}

func (c *faultyConn) IsValid() bool { return !c.lost }

func (c *faultyConn) ResetSession(ctx context.Context) error {
	if c.lost {
		return driver.ErrBadConn
	}
	if r, ok := c.Conn.(driver.SessionResetter); ok {
		return r.ResetSession(ctx)
	}
	return nil
}

func (c *faultyConn) CheckNamedValue(v *driver.NamedValue) error {
	if checker, ok := c.Conn.(driver.NamedValueChecker); ok {
		return checker.CheckNamedValue(v)
	}
	return driver.ErrSkip
}

func (c *faultyConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (result driver.Result, err error) {
	err = c.call(func() (err error) {
		result, err = c.Conn.(driver.ExecerContext).ExecContext(ctx, query, args)
		return err
	})
	return result, err
}

func (c *faultyConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (rows driver.Rows, err error) {
	err = c.call(func() (err error) {
		rows, err = c.Conn.(driver.QueryerContext).QueryContext(ctx, query, args)
		return err
	})
	return c.rows(rows, err)
}

func (c *faultyConn) rows(rows driver.Rows, err error) (driver.Rows, error) {
	switch {
	case err == nil:
		return &faultyRows{rows, c}, nil
	case rows != nil: // nobody hears of them
		for into := make([]driver.Value, len(rows.Columns())); rows.Next(into) == nil; {
			continue
		}
		_ = rows.Close()
	}
	return nil, err
}

func (c *faultyConn) PrepareContext(ctx context.Context, query string) (stmt driver.Stmt, err error) {
	err = c.call(func() (err error) {
		stmt, err = c.Conn.(driver.ConnPrepareContext).PrepareContext(ctx, query)
		return err
	})
	if err != nil {
		if stmt != nil {
			_ = stmt.Close()
		}
		return nil, err
	}
	c.statements = append(c.statements, stmt)
	return &faultyStmt{stmt, c}, nil
}

func (c *faultyConn) BeginTx(ctx context.Context, opts driver.TxOptions) (tx driver.Tx, err error) {
	err = c.call(func() (err error) {
		tx, err = c.Conn.(driver.ConnBeginTx).BeginTx(ctx, opts)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &faultyTx{tx, c}, nil
}

type faultyStmt struct {
	driver.Stmt
	conn *faultyConn
}

func (s *faultyStmt) CheckNamedValue(v *driver.NamedValue) error { return s.conn.CheckNamedValue(v) }

func (s *faultyStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (result driver.Result, err error) {
	err = s.conn.call(func() (err error) {
		result, err = s.Stmt.(driver.StmtExecContext).ExecContext(ctx, args)
		return err
	})
	return result, err
}

func (s *faultyStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (rows driver.Rows, err error) {
	err = s.conn.call(func() (err error) {
		rows, err = s.Stmt.(driver.StmtQueryContext).QueryContext(ctx, args)
		return err
	})
	return s.conn.rows(rows, err)
}

type faultyRows struct {
	driver.Rows
	conn *faultyConn
}

func (r *faultyRows) Next(dest []driver.Value) error {
	return r.conn.call(func() error { return r.Rows.Next(dest) })
}

type faultyTx struct {
	driver.Tx
	conn *faultyConn
}

// Commit that is refused has rolled back.
func (x *faultyTx) Commit() error { return x.end(x.Tx.Commit) }

func (x *faultyTx) Rollback() error { return x.end(x.Tx.Rollback) }

func (x *faultyTx) end(do func() error) error {
	done := false
	err := x.conn.call(func() error { done = true; return do() })
	if !done && !x.conn.lost {
		_ = x.Tx.Rollback()
	}
	return err
}

// faulty is an application on such a driver, and what the database looks like without
// the faults.
type faulty struct {
	faults   *faults
	db       *gorm.DB
	sessions *gormsessions.Plugin[conformance.UserSession]
	clock    *sessiontest.Clock
	users    int
}

// connectorOf opens a database that a driver of the test's can stand before.
type connectorOf func(t *testing.T) (driver.Connector, func(gorm.ConnPool) gorm.Dialector)

func connectors() map[string]connectorOf {
	return map[string]connectorOf{
		"sqlite": func(t *testing.T) (driver.Connector, func(gorm.ConnPool) gorm.Dialector) {
			dsn := filepath.Join(t.TempDir(), "test.db") + conformance.SQLiteOptions + "&_synchronous=off"
			pool, err := sql.Open(sqlite.DriverName, dsn)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = pool.Close() })
			return named{dsn, pool.Driver()}, func(pool gorm.ConnPool) gorm.Dialector { return sqlite.New(sqlite.Config{Conn: pool}) }
		},
		"postgres": func(t *testing.T) (driver.Connector, func(gorm.ConnPool) gorm.Dialector) {
			config, err := pgx.ParseConfig(conformance.PostgreSQL().Dialect(t).(*postgres.Dialector).DSN)
			if err != nil {
				t.Fatal(err)
			}
			return stdlib.GetConnector(*config), func(pool gorm.ConnPool) gorm.Dialector {
				return postgres.New(postgres.Config{Conn: pool})
			}
		},
	}
}

// named is a connector for drivers that have none.
type named struct {
	dsn    string
	driver driver.Driver
}

func (n named) Connect(context.Context) (driver.Conn, error) { return n.driver.Open(n.dsn) }
func (n named) Driver() driver.Driver                        { return n.driver }

// TestR47Faults has every call to the driver fail in turn, in every method and every way.
func TestR47Faults(t *testing.T) {
	for name, connector := range connectors() {
		for variant, config := range map[string]gormsessions.Config{
			"plain":  {MaxPerOwner: 2},
			"events": {MaxPerOwner: 2, OnEvent: func(context.Context, gormsessions.Event) {}},
		} {
			for _, prepared := range []bool{false, true} {
				if name == "postgres" && prepared != (variant == "events") && !conformance.Long() {
					continue
				}
				t.Run(fmt.Sprintf("%s/%s/prepared=%v", name, variant, prepared), func(t *testing.T) {
					t.Parallel()
					f := newFaulty(t, connector, config, prepared)
					for _, c := range faultCases {
						t.Run(c.name, func(t *testing.T) { f.everyCall(t, c) })
					}
				})
			}
		}
	}
}

// TestR47Naive is the negative control: what is done in two statements of their own is
// found half done.
func TestR47Naive(t *testing.T) {
	f := newFaulty(t, connectors()["sqlite"], gormsessions.Config{}, false)
	half := 0
	replace := faultCase{name: "replace", sessions: 1,
		do: func(ctx context.Context, f *faulty, u *conformance.User, list sessionList) (*conformance.UserSession, error) {
			if _, err := f.sessions.Revoke(ctx, "replaced", gormsessions.WithID(list[0].ID)); err != nil {
				return nil, err
			}
			return nil, f.sessions.Create(ctx, newSession(u))
		},
		check: func(t *testing.T, f *faulty, u *conformance.User, _ sessionCopy, _ sessionList, _ *conformance.UserSession, _ error) {
			if f.active(t, u) != 1 {
				half++
			}
		}}
	for k := 1; !f.oneCall(t, replace, k, cut, false); k++ {
	}
	if half == 0 {
		t.Error("nothing is half done")
	}
	t.Logf("%d times half done", half)
}

func newFaulty(t *testing.T, connector connectorOf, config gormsessions.Config, prepared bool) *faulty {
	t.Helper()
	under, dialector := connector(t)
	f := &faulty{faults: &faults{Connector: under}, clock: sessiontest.NewClock(time.Now())}
	pool := sql.OpenDB(f.faults)
	t.Cleanup(func() { _ = pool.Close() })
	pool.SetMaxOpenConns(3)
	var err error
	f.db, err = gorm.Open(dialector(pool), &gorm.Config{NowFunc: f.clock.Now, PrepareStmt: prepared, Logger: logger.Discard})
	if err != nil {
		t.Fatal(err)
	}
	f.sessions = gormsessions.New[conformance.UserSession](config)
	if err := f.db.Use(f.sessions); err != nil {
		t.Fatal(err)
	}
	return f
}

// faultCase is a method: do calls it, with a user's sessions of whom there are so many, and
// check looks at what is left, where err may be nil although a call has failed.
type faultCase struct {
	name     string
	sessions int
	prepare  func(t *testing.T, f *faulty, list []*conformance.UserSession)
	do       func(ctx context.Context, f *faulty, u *conformance.User, list []*conformance.UserSession) (*conformance.UserSession, error)
	check    func(t *testing.T, f *faulty, u *conformance.User, before []conformance.UserSession, list []*conformance.UserSession, got *conformance.UserSession, err error)
}

// everyCall has each call of a method fail.
func (f *faulty) everyCall(t *testing.T, c faultCase) {
	if err := f.db.Where("1 = 1").Delete(&conformance.UserSession{}).Error; err != nil { // of the cases before
		t.Fatal(err)
	}
	met := 0
	for _, how := range []fault{refused, cut, unheard, retriable} {
		for _, onto := range []bool{false, true} {
			if f.db.Name() != "sqlite" && !conformance.Long() && (onto || how == refused || how == retriable) {
				continue // for time
			}
			for k := 1; ; k++ {
				if k > 200 {
					t.Fatalf("%s: it makes more than 200 calls", how)
				}
				ended := f.oneCall(t, c, k, how, onto)
				if t.Failed() {
					t.Fatalf("with the fault at call %d: %s, and all after it: %v", k, how, onto)
				}
				if ended {
					break
				}
				met++
			}
		}
	}
	t.Logf("%d faults", met)
}

func (f *faulty) oneCall(t *testing.T, c faultCase, k int, how fault, onto bool) (ended bool) {
	t.Helper()
	f.users++
	u := &conformance.User{Name: fmt.Sprint(f.users)}
	if err := f.db.Create(u).Error; err != nil {
		t.Fatal(err)
	}
	var list []*conformance.UserSession
	for range c.sessions {
		f.clock.Advance(time.Millisecond)
		s := newSession(u)
		if err := f.sessions.Create(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		list = append(list, s)
	}
	if c.prepare != nil {
		c.prepare(t, f, list)
	}
	before := make([]conformance.UserSession, len(list))
	for i, s := range list {
		before[i] = *s
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	f.faults.set(k, how, onto)
	got, err := c.do(ctx, f, u, list)
	met := f.faults.clear()
	if !met && err != nil && !errors.Is(err, gormsessions.ErrNoSession) {
		t.Errorf("without a fault: %v", err)
	}
	if met && err != nil && !errors.Is(err, gormsessions.ErrNoSession) && !errors.Is(err, errFault) && !errors.Is(err, driver.ErrBadConn) && !errors.Is(err, sql.ErrTxDone) {
		t.Logf("another error than the fault's: %v", err)
	}
	idle(t, c.name, f.db)
	c.check(t, f, u, before, list, got, err)
	idle(t, c.name, f.db)
	return !met
}

func newSession(u *conformance.User) *conformance.UserSession {
	s := &conformance.UserSession{}
	s.OwnerID = u.ID
	return s
}

func (f *faulty) is(t *testing.T, what string, token gormsessions.Token, want error) *conformance.UserSession {
	t.Helper()
	got, err := f.sessions.Lookup(t.Context(), string(token))
	if !errors.Is(err, want) {
		t.Errorf("%s: got %v, want %v", what, err, want)
	}
	return got
}

// active is how many sessions a user has.
func (f *faulty) active(t *testing.T, u *conformance.User) int64 {
	t.Helper()
	n, err := f.sessions.Count(t.Context(), gormsessions.ForUser(u), gormsessions.Active)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// retired is how many tokens a session has had before.
func (f *faulty) retired(t *testing.T, s *conformance.UserSession) (n int64) {
	t.Helper()
	if err := f.db.Raw("SELECT count(*) FROM user_sessions_retired_tokens WHERE session_id = ?", s.ID).Scan(&n).Error; err != nil {
		t.Fatal(err)
	}
	return n
}

type (
	sessionList = []*conformance.UserSession
	sessionCopy = []conformance.UserSession
)

var faultCases = []faultCase{
	creates("Create", 0, func(ctx context.Context, f *faulty, s *conformance.UserSession) error {
		return f.sessions.Create(ctx, s)
	}),
	creates("db.Create", 0, func(ctx context.Context, f *faulty, s *conformance.UserSession) error {
		return f.db.WithContext(ctx).Create(s).Error
	}),
	creates("Create over the limit", 2, func(ctx context.Context, f *faulty, s *conformance.UserSession) error {
		return f.sessions.Create(ctx, s)
	}),
	creates("db.Create over the limit", 2, func(ctx context.Context, f *faulty, s *conformance.UserSession) error {
		return f.db.WithContext(ctx).Create(s).Error
	}),
	creates("db.Create over the limit, SkipDefaultTransaction", 2, func(ctx context.Context, f *faulty, s *conformance.UserSession) error {
		return f.db.Session(&gorm.Session{Context: ctx, SkipDefaultTransaction: true}).Create(s).Error
	}),
	{name: "Authenticate", sessions: 1,
		do: func(ctx context.Context, f *faulty, _ *conformance.User, list sessionList) (*conformance.UserSession, error) {
			return f.sessions.Authenticate(ctx, string(list[0].Token))
		},
		check: accepts},
	{name: "Authenticate with its owner", sessions: 1,
		do: func(ctx context.Context, f *faulty, _ *conformance.User, list sessionList) (*conformance.UserSession, error) {
			got, err := f.sessions.Authenticate(ctx, string(list[0].Token), gormsessions.WithOwner)
			if err == nil && got.Owner == nil {
				err = errors.New("found without its owner")
			}
			return got, err
		},
		check: accepts},
	{name: "Authenticate a revoked one", sessions: 1, check: refuses,
		prepare: func(t *testing.T, f *faulty, list sessionList) {
			if _, err := f.sessions.Revoke(t.Context(), "test", gormsessions.WithID(list[0].ID)); err != nil {
				t.Fatal(err)
			}
		},
		do: func(ctx context.Context, f *faulty, _ *conformance.User, list sessionList) (*conformance.UserSession, error) {
			return f.sessions.Authenticate(ctx, string(list[0].Token))
		}},
	{name: "Authenticate a reused one", sessions: 1, check: refuses,
		prepare: func(t *testing.T, f *faulty, list sessionList) {
			old := list[0].Token
			if err := f.sessions.Rotate(t.Context(), list[0]); err != nil {
				t.Fatal(err)
			}
			list[0].Token = old
			f.clock.Advance(time.Minute)
		},
		do: func(ctx context.Context, f *faulty, _ *conformance.User, list sessionList) (*conformance.UserSession, error) {
			return f.sessions.Authenticate(ctx, string(list[0].Token))
		}},
	{name: "Rotate", sessions: 1, check: rotates,
		do: func(ctx context.Context, f *faulty, _ *conformance.User, list sessionList) (*conformance.UserSession, error) {
			return list[0], f.sessions.Rotate(ctx, list[0])
		}},
	{name: "Reauthenticate", sessions: 1, check: rotates,
		do: func(ctx context.Context, f *faulty, _ *conformance.User, list sessionList) (*conformance.UserSession, error) {
			return list[0], f.sessions.Reauthenticate(ctx, list[0])
		}},
	{name: "Revoke", sessions: 2,
		do: func(ctx context.Context, f *faulty, u *conformance.User, _ sessionList) (*conformance.UserSession, error) {
			n, err := f.sessions.Revoke(ctx, "test", gormsessions.ForUser(u))
			if err == nil && n != 2 || err != nil && n != 0 {
				err = fmt.Errorf("%d revoked, and the error %w", n, err)
			}
			return nil, err
		},
		check: func(t *testing.T, f *faulty, u *conformance.User, _ sessionCopy, list sessionList, _ *conformance.UserSession, err error) {
			if n := f.active(t, u); n != 0 && (n != 2 || err == nil) {
				t.Errorf("Revoke, which said %v, left %d of 2 active", err, n)
			}
			if _, err := f.sessions.Revoke(t.Context(), "again", gormsessions.ForUser(u)); err != nil {
				t.Errorf("Revoke again: %v", err)
			}
			for _, s := range list {
				f.is(t, "revoked", s.Token, gormsessions.ErrNoSession)
			}
		}},
	{name: "SetExpiry", sessions: 1, check: expires,
		do: func(ctx context.Context, f *faulty, _ *conformance.User, list sessionList) (*conformance.UserSession, error) {
			end := f.clock.Now().Add(time.Hour)
			return list[0], f.sessions.SetExpiry(ctx, list[0], &end)
		}},
	{name: "SetExpiry of an expired one, over the limit", sessions: 1,
		prepare: func(t *testing.T, f *faulty, list sessionList) {
			f.clock.Advance(8 * 24 * time.Hour)
			for range 2 {
				s := &conformance.UserSession{}
				s.OwnerID = list[0].OwnerID
				if err := f.sessions.Create(t.Context(), s); err != nil {
					t.Fatal(err)
				}
			}
		},
		do: func(ctx context.Context, f *faulty, _ *conformance.User, list sessionList) (*conformance.UserSession, error) {
			end := f.clock.Now().Add(time.Hour)
			return list[0], f.sessions.SetExpiry(ctx, list[0], &end)
		},
		check: func(t *testing.T, f *faulty, u *conformance.User, before sessionCopy, list sessionList, got *conformance.UserSession, err error) {
			if n := f.active(t, u); n != 2 {
				t.Errorf("%d sessions are active, want 2", n)
			}
			if err == nil {
				f.is(t, "valid again", list[0].Token, nil)
			} else if !list[0].ExpiresAt.Equal(*before[0].ExpiresAt) {
				t.Errorf("a SetExpiry that failed left %v", list[0].ExpiresAt)
			}
		}},
	{name: "Extend", sessions: 1, check: expires,
		prepare: func(_ *testing.T, f *faulty, _ sessionList) { f.clock.Advance(time.Minute) },
		do: func(ctx context.Context, f *faulty, _ *conformance.User, list sessionList) (*conformance.UserSession, error) {
			return list[0], f.sessions.Extend(ctx, list[0])
		}},
	{name: "Prune", sessions: 2,
		prepare: func(t *testing.T, f *faulty, list sessionList) {
			if err := f.sessions.Rotate(t.Context(), list[0]); err != nil {
				t.Fatal(err)
			}
			if _, err := f.sessions.Revoke(t.Context(), "test", gormsessions.WithID(list[0].ID)); err != nil {
				t.Fatal(err)
			}
			f.clock.Advance(time.Second)
		},
		do: func(ctx context.Context, f *faulty, _ *conformance.User, _ sessionList) (*conformance.UserSession, error) {
			_, err := f.sessions.Prune(ctx)
			return nil, err
		},
		check: func(t *testing.T, f *faulty, _ *conformance.User, _ sessionCopy, list sessionList, _ *conformance.UserSession, err error) {
			f.is(t, "active", list[1].Token, nil)
			left, gone := f.sessions.Get(t.Context(), gormsessions.WithID(list[0].ID))
			if n := f.retired(t, list[0]); (left != nil) != (n > 0) {
				t.Errorf("Prune, which said %v, left the session: %v, and %d of its tokens", err, left != nil, n)
			}
			if err == nil && gone == nil {
				t.Error("Prune left what had ended, without an error")
			}
			// A server may hold the locks of a connection that was cut for a moment more,
			// and Prune leaves what is locked to the next run.
			for range 5_000 {
				if _, err := f.sessions.Prune(t.Context()); err != nil {
					t.Errorf("Prune again: %v", err)
					return
				}
				if _, gone = f.sessions.Get(t.Context(), gormsessions.WithID(list[0].ID)); gone != nil {
					break
				}
			}
			if gone != gormsessions.ErrNoSession || f.retired(t, list[0]) > 0 {
				t.Errorf("Prune again left what had ended: %v", gone)
			}
		}},
}

// creates is a create by some door, for a user with so many sessions.
func creates(name string, sessions int, create func(context.Context, *faulty, *conformance.UserSession) error) faultCase {
	return faultCase{name: name, sessions: sessions,
		do: func(ctx context.Context, f *faulty, u *conformance.User, _ sessionList) (*conformance.UserSession, error) {
			s := newSession(u)
			return s, create(ctx, f, s)
		},
		check: func(t *testing.T, f *faulty, u *conformance.User, before sessionCopy, list sessionList, got *conformance.UserSession, err error) {
			switch {
			case err == nil:
				f.is(t, "created", got.Token, nil)
			case errors.Is(err, gormsessions.ErrNoSession):
				t.Errorf("got %v", err)
			case got.Token != "" || len(got.TokenDigest) != 0:
				t.Error("a create that failed left a token")
			}
			n := f.active(t, u)
			switch {
			case sessions == 0 && err == nil && n != 1, sessions == 0 && n > 1:
				t.Errorf("%d sessions, and the error %v", n, err)
			case sessions > 0 && n != int64(sessions):
				t.Errorf("%d sessions are active, want %d, and the error %v", n, sessions, err)
			}
		},
	}
}

// accepts: a database that fails is not "no session", and a session that was found is one.
func accepts(t *testing.T, f *faulty, _ *conformance.User, _ sessionCopy, list sessionList, got *conformance.UserSession, err error) {
	if errors.Is(err, gormsessions.ErrNoSession) || err != nil && got != nil && got.Token != "" {
		t.Errorf("got %v", err)
	}
	if err == nil && got.ID != list[0].ID {
		t.Errorf("got the session %v, want %v", got.ID, list[0].ID)
	}
	f.is(t, "afterwards", list[0].Token, nil)
}

// refuses: no failure makes a session of a token that has none.
func refuses(t *testing.T, f *faulty, _ *conformance.User, _ sessionCopy, list sessionList, got *conformance.UserSession, err error) {
	if err == nil || got != nil {
		t.Errorf("accepted: %v", err)
	}
	_, again := f.sessions.Authenticate(t.Context(), string(list[0].Token))
	if !errors.Is(again, gormsessions.ErrNoSession) {
		t.Errorf("afterwards: got %v, want ErrNoSession", again)
	}
	if row, err := f.sessions.Get(t.Context(), gormsessions.WithID(list[0].ID)); err != nil || !row.IsRevoked() {
		t.Errorf("afterwards it is not revoked, %v", err)
	}
}

func rotates(t *testing.T, f *faulty, _ *conformance.User, before sessionCopy, list sessionList, _ *conformance.UserSession, err error) {
	s := list[0]
	if errors.Is(err, gormsessions.ErrNoSession) {
		t.Errorf("got %v", err)
	}
	if err != nil && s.Token != before[0].Token {
		t.Error("a rotation that failed left a token")
	}
	if err == nil && s.Token == before[0].Token {
		t.Error("a rotation that succeeded left the token")
	}
	f.is(t, "its token", s.Token, nil)
	row, failed := f.sessions.Get(t.Context(), gormsessions.WithID(s.ID))
	if failed != nil {
		t.Fatal(failed)
	}
	if changed, n := string(row.TokenDigest) != string(before[0].TokenDigest), f.retired(t, s); n > 1 || changed != (n == 1) {
		t.Errorf("half rotated: a new digest %v, %d retired tokens", changed, n)
	}
	if err := f.sessions.Rotate(t.Context(), f.is(t, "once more", s.Token, nil)); err != nil && !errors.Is(err, gormsessions.ErrRotated) {
		t.Errorf("Rotate once more: %v", err)
	}
}

func expires(t *testing.T, f *faulty, _ *conformance.User, before sessionCopy, list sessionList, _ *conformance.UserSession, err error) {
	if errors.Is(err, gormsessions.ErrNoSession) {
		t.Errorf("got %v", err)
	}
	row := f.is(t, "its token", list[0].Token, nil)
	if err == nil && !row.ExpiresAt.Equal(*list[0].ExpiresAt) {
		t.Errorf("the value has %v, the row %v", list[0].ExpiresAt, row.ExpiresAt)
	}
	if err == nil && list[0].ExpiresAt.Equal(*before[0].ExpiresAt) || err != nil && !list[0].ExpiresAt.Equal(*before[0].ExpiresAt) {
		t.Errorf("the value has %v, before it %v, and the error is %v", list[0].ExpiresAt, before[0].ExpiresAt, err)
	}
}
