package tests

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/internal/conformance"
	"github.com/gormsessions/gormsessions/tests/internal/pgserver"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

// visits opens a database for sessions without an owner.
func visits(t *testing.T, dialector gorm.Dialector, config gormsessions.Config, conns int) (*gorm.DB, *gormsessions.Plugin[Visit]) {
	t.Helper()
	db, err := gorm.Open(dialector, &gorm.Config{Logger: logger.Discard})
	if err != nil {
		t.Fatal(err)
	}
	pool, err := db.DB()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pool.Close() })
	pool.SetMaxOpenConns(conns)
	sessions := gormsessions.New[Visit](config)
	if err := db.Use(sessions); err != nil {
		t.Fatal(err)
	}
	return db, sessions
}

// idle asserts that no connection of the pool is in use.
func idle(t *testing.T, what string, db *gorm.DB) {
	t.Helper()
	pool, err := db.DB()
	if err != nil {
		t.Fatal(err)
	}
	// A context that has ended gives its connection back from another goroutine.
	if err := pgserver.Until(5*time.Second, func() error {
		if n := pool.Stats().InUse; n != 0 {
			return fmt.Errorf("%d connections are in use", n)
		}
		return nil
	}); err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

// The phases of an outage.
const (
	up int32 = iota
	falling
	down
	rising
	phases
)

// TestR43ServerStopped stops PostgreSQL at once while it is used, and starts it again.
func TestR43ServerStopped(t *testing.T) {
	const workers = 6
	server := pgserver.New(t)
	db, sessions := visits(t, postgres.Open(server.DSN()), gormsessions.Config{TouchInterval: time.Microsecond}, 8)
	ctx := t.Context()

	var (
		phase   atomic.Int32
		stop    = make(chan struct{})
		wg      sync.WaitGroup
		answers [workers][phases]atomic.Int64 // begun and ended in one phase
		back    [workers]atomic.Bool          // has been served after the restart
	)
	// ask makes one call, and judges its answer by when it was given.
	ask := func(worker int, what string, live bool, fn func() error) error {
		before := phase.Load()
		err := fn()
		after := phase.Load()
		switch {
		case live && errors.Is(err, gormsessions.ErrNoSession):
			t.Errorf("%s, in phase %d: a session that is active got %v", what, before, err)
		case !live && err == nil:
			t.Errorf("%s, in phase %d: accepted", what, before)
		case before == down && after == down && (err == nil || errors.Is(err, gormsessions.ErrNoSession)):
			t.Errorf("%s, without a database: got %v", what, err)
		}
		if before == after {
			answers[worker][before].Add(1)
		}
		return err
	}
	for w := range workers {
		var live, dead Visit
		for _, s := range []*Visit{&live, &dead} {
			if err := sessions.Create(ctx, s); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := sessions.Revoke(ctx, "test", gormsessions.WithID(dead.ID)); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				began := phase.Load()
				err := ask(w, "Authenticate", true, func() error { _, err := sessions.Authenticate(ctx, string(live.Token)); return err })
				if began == rising && err == nil {
					back[w].Store(true)
				}
				_ = ask(w, "Lookup", true, func() error { _, err := sessions.Lookup(ctx, string(live.Token)); return err })
				_ = ask(w, "Authenticate a revoked one", false, func() error { _, err := sessions.Authenticate(ctx, string(dead.Token)); return err })
				var s Visit
				if ask(w, "Create", true, func() error { return sessions.Create(ctx, &s) }) != nil {
					if s.Token != "" {
						t.Error("a create that failed left a token")
					}
					continue
				}
				err = ask(w, "Revoke", true, func() error { _, err := sessions.Revoke(ctx, "test", gormsessions.WithID(s.ID)); return err })
				if err == nil {
					dead = s // what was acknowledged holds from here on
				}
			}
		})
	}
	served := func(what string, n int64, in int32) {
		t.Helper()
		if err := pgserver.Until(30*time.Second, func() error {
			for w := range workers {
				if got := answers[w][in].Load(); got < n {
					return fmt.Errorf("a goroutine has %d answers, want %d", got, n)
				}
			}
			return nil
		}); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	served("before", 50, up)
	phase.Store(falling)
	server.Stop()
	phase.Store(down)
	served("without a database", 50, down)
	phase.Store(rising)
	begun := time.Now()
	server.Start()
	started := time.Now()
	if err := pgserver.Until(30*time.Second, func() error {
		for w := range workers {
			if !back[w].Load() {
				return fmt.Errorf("the goroutine %d is not served", w)
			}
		}
		return nil
	}); err != nil {
		t.Errorf("after the restart: %v", err)
	}
	t.Logf("all served %v after PostgreSQL answered, which was %v after its start", time.Since(started), started.Sub(begun))
	if took := time.Since(started); took > 5*time.Second {
		t.Errorf("the service is back after %v, want at most 5s", took)
	}
	phase.Store(up)
	close(stop)
	wg.Wait()
	idle(t, "at the end", db)
	var without int64
	for w := range workers {
		without += answers[w][down].Load()
	}
	t.Logf("%d answers without a database", without)
}

// TestR42Killed kills the processes of PostgreSQL again and again while sessions are
// revoked: none whose revocation was acknowledged is accepted afterwards.
func TestR42Killed(t *testing.T) {
	kills := 20
	if conformance.Long() {
		kills = 200
	}
	server := pgserver.New(t, "fsync = on")
	_, sessions := visits(t, postgres.Open(server.DSN()), gormsessions.Config{}, 8)
	ctx := t.Context()
	var all []outcome
	lost := 0
	for range kills {
		some := killed(t, server, sessions, int64(20+rand.IntN(30)))
		lost += verify(t, sessions, some)
		all = append(all, some...)
	}
	lost += verify(t, sessions, all)
	if lost > 0 {
		t.Errorf("%d acknowledged answers were lost", lost)
	}
	revoked, unanswered := 0, 0
	for _, o := range all {
		switch {
		case o.revoked:
			revoked++
		case o.asked:
			// It may have been revoked or not; to ask again settles it.
			if _, err := sessions.Revoke(ctx, "again", gormsessions.WithID(o.session.ID)); err != nil {
				t.Fatal(err)
			}
			if _, err := sessions.Lookup(ctx, string(o.session.Token)); err != gormsessions.ErrNoSession {
				t.Errorf("revoked again: got %v, want ErrNoSession", err)
			}
			unanswered++
		}
	}
	t.Logf("%d kills, %d revocations acknowledged, %d left without an answer", kills, revoked, unanswered)
}

// TestR42Unsafe is the negative control: a PostgreSQL that is told not to wait for its disk
// loses what it has acknowledged, and the test sees that.
func TestR42Unsafe(t *testing.T) {
	server := pgserver.New(t, "synchronous_commit = off", "wal_writer_delay = 10s")
	_, sessions := visits(t, postgres.Open(server.DSN()), gormsessions.Config{}, 8)
	for range 10 {
		if n := verify(t, sessions, killed(t, server, sessions, 10)); n > 0 {
			t.Logf("%d acknowledged answers were lost", n)
			return
		}
	}
	t.Error("nothing is lost without synchronous_commit")
}

// outcome is what a program knows of a session that it created: it was told so; and
// revoked, if it was told so too.
type outcome struct {
	session        Visit
	asked, revoked bool
}

// killed has sessions created and revoked, kills the server after some revocations
// were acknowledged, and starts it again.
func killed(t *testing.T, server *pgserver.Server, sessions *gormsessions.Plugin[Visit], after int64) (all []outcome) {
	t.Helper()
	var (
		wg           sync.WaitGroup
		mu           sync.Mutex
		acknowledged atomic.Int64
	)
	for range 4 {
		wg.Go(func() {
			for i := 0; ; i++ {
				var o outcome
				err := sessions.Create(t.Context(), &o.session)
				if err != nil {
					return // the server was killed
				}
				if o.asked = i%4 != 0; o.asked {
					_, err = sessions.Revoke(t.Context(), "test", gormsessions.WithID(o.session.ID))
					if o.revoked = err == nil; o.revoked {
						acknowledged.Add(1)
					}
				}
				mu.Lock()
				all = append(all, o)
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	err := pgserver.Until(30*time.Second, func() error {
		if acknowledged.Load() < after {
			return errors.New("nothing is written")
		}
		return nil
	})
	server.Kill()
	wg.Wait()
	if err != nil {
		t.Fatal(err)
	}
	server.Start()
	return all
}

// verify counts the sessions that are not as their program was told.
func verify(t *testing.T, sessions *gormsessions.Plugin[Visit], all []outcome) (lost int) {
	t.Helper()
	for _, o := range all {
		var err error
		ask := func() error { // a connection of the pool may not have been used since the kill
			_, err = sessions.Lookup(t.Context(), string(o.session.Token))
			if err == gormsessions.ErrNoSession {
				return nil
			}
			return err
		}
		if failed := pgserver.Until(5*time.Second, ask); failed != nil {
			t.Fatal(failed)
		}
		switch {
		case o.revoked && err == nil, !o.asked && err != nil:
			lost++
		}
	}
	return lost
}

// servers are the databases that the tests below break in their own ways.
func servers() []conformance.Database {
	return []conformance.Database{conformance.SQLiteFile(), conformance.PostgreSQL(), conformance.MariaDB()}
}

// remembering is a hasher that keeps the tokens it has digested.
type remembering struct {
	gormsessions.Hasher
	mu   sync.Mutex
	last []string
}

func (r *remembering) Digest(token string) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = append(r.last, token)
	return r.Hasher.Digest(token)
}

// shown asserts that an error shows none of the tokens since it was last asked.
func (r *remembering) shown(t *testing.T, err error) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, token := range r.last {
		if err != nil && strings.Contains(fmt.Sprintf("%v %+v", err, err), token[:12]) {
			t.Errorf("an error shows a token: %v", err)
		}
	}
	r.last = r.last[:0]
}

// TestR44Cancelled cancels contexts at random moments within every method.
func TestR44Cancelled(t *testing.T) {
	rounds := 60
	if conformance.Long() {
		rounds = 2000
	}
	for _, d := range servers() {
		t.Run(d.Name, func(t *testing.T) {
			for name, config := range map[string]gormsessions.Config{
				"plain":  {TouchInterval: time.Microsecond},
				"events": {TouchInterval: time.Microsecond, OnEvent: func(context.Context, gormsessions.Event) {}},
			} {
				hasher := &remembering{Hasher: gormsessions.Hash(crypto.SHA256)}
				config.Hashers = []gormsessions.Hasher{hasher}
				db, sessions := visits(t, d.Dialect(t), config, 4)
				cancelled(t, name, rounds, db, sessions, hasher)
				idle(t, name, db)
			}
		})
	}
}

func cancelled(t *testing.T, name string, rounds int, db *gorm.DB, sessions *gormsessions.Plugin[Visit], hasher *remembering) {
	t.Helper()
	ctx := t.Context()
	kept := &Visit{}
	if err := sessions.Create(ctx, kept); err != nil {
		t.Fatal(err)
	}
	failed, done := map[string]int{}, map[string]int{}
	within := map[string]time.Duration{} // such that about half of the calls succeed
	// under runs fn with a context that ends at a random moment of it.
	under := func(what string, fn func(context.Context) error) error {
		limit, begun := within[what], time.Now()
		short, cancel := context.WithCancel(ctx)
		defer cancel()
		switch {
		case limit > 0 && rand.N(8) == 0:
			cancel() // the first moment: SQLite may be done before a timer's goroutine runs
		case limit > 0:
			defer time.AfterFunc(rand.N(limit), cancel).Stop()
		}
		err := fn(short)
		switch {
		case limit == 0:
			within[what] = 2 * time.Since(begun)
		case err != nil:
			within[what] += limit / 4
		default:
			within[what] -= limit / 5
		}
		hasher.shown(t, err)
		if err != nil {
			failed[what]++
		} else {
			done[what]++
		}
		return err
	}
	is := func(what string, token gormsessions.Token, want error) {
		t.Helper()
		if _, err := sessions.Lookup(ctx, string(token)); !errors.Is(err, want) {
			t.Errorf("%s, %s: got %v, want %v", name, what, err, want)
		}
	}
	for range rounds {
		s := &Visit{}
		if err := under("Create", func(ctx context.Context) error { return sessions.Create(ctx, s) }); err != nil {
			if s.Token != "" || len(s.TokenDigest) != 0 {
				t.Errorf("%s: a create that failed left a token", name)
			}
			continue
		}
		is("created", s.Token, nil)

		err := under("Authenticate", func(ctx context.Context) error {
			_, err := sessions.Authenticate(ctx, string(kept.Token))
			return err
		})
		if errors.Is(err, gormsessions.ErrNoSession) {
			t.Errorf("%s: Authenticate of an active session: got %v", name, err)
		}

		before := *s
		for _, rotate := range []func(context.Context, *Visit) error{sessions.Rotate, sessions.Reauthenticate} {
			if err := under("Rotate", func(ctx context.Context) error { return rotate(ctx, s) }); err != nil {
				if s.Token != before.Token {
					t.Errorf("%s: a rotation that failed left a token", name)
				}
				is("not rotated", before.Token, nil) // or rotated, and in its grace
				break
			}
			is("rotated", s.Token, nil)
			before = *s
		}

		revoke := func(ctx context.Context) error {
			_, err := sessions.Revoke(ctx, "test", gormsessions.WithID(s.ID))
			return err
		}
		if under("Revoke", revoke) != nil {
			if err := revoke(ctx); err != nil {
				t.Errorf("%s: Revoke again: %v", name, err)
			}
		}
		is("revoked", s.Token, gormsessions.ErrNoSession)
		if n, err := sessions.Revoke(ctx, "again", gormsessions.WithID(s.ID)); n != 0 || err != nil {
			t.Errorf("%s: Revoke of a revoked one: got %d, %v; want 0", name, n, err)
		}
	}
	t.Logf("%s: cancelled %v, done %v", name, failed, done)
	for _, what := range []string{"Create", "Rotate", "Revoke"} { // else nothing was tried
		if failed[what] == 0 || done[what] == 0 {
			t.Errorf("%s: %s failed %d times and was done %d times", name, what, failed[what], done[what])
		}
	}
	idle(t, name, db)
}

// TestR45ReadOnly uses sessions on a database that takes no writes any more.
func TestR45ReadOnly(t *testing.T) {
	for _, d := range servers() {
		t.Run(d.Name, func(t *testing.T) {
			dialector := d.Dialect(t)
			// On one connection, which is told to take no writes.
			db, sessions := visits(t, dialector, gormsessions.Config{}, 1)
			stop, refusal := "SET default_transaction_read_only = on", "read-only"
			switch d.Name {
			case "mariadb":
				stop, refusal = "SET SESSION TRANSACTION READ ONLY", "READ ONLY"
			case "sqlite":
				stop, refusal = "PRAGMA query_only = on", "readonly"
			}
			withoutWrites(t, sessions, refusal, func() error { return db.Exec(stop).Error })
			idle(t, "at the end", db)
		})
	}
}

// TestR45File opens SQLite's file for reading alone.
func TestR45File(t *testing.T) {
	file := filepath.Join(t.TempDir(), "test.db")
	_, sessions := visits(t, sqlite.Open(file), gormsessions.Config{}, 1)
	created := func() *Visit {
		t.Helper()
		s := &Visit{}
		if err := sessions.Create(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	list := []*Visit{created(), created()}
	_, sessions = visits(t, sqlite.Open("file:"+file+"?mode=ro"), gormsessions.Config{SkipMigrate: true}, 1)
	onlyReads(t, sessions, "readonly", list)
}

// TestR45DiskFull fills SQLite's file to the size that it may have.
func TestR45DiskFull(t *testing.T) {
	db, sessions := visits(t, sqlite.Open(filepath.Join(t.TempDir(), "test.db")), gormsessions.Config{MaxPerOwner: 0}, 1)
	ctx := t.Context()
	if err := db.Exec("PRAGMA max_page_count = 60").Error; err != nil {
		t.Fatal(err)
	}
	var list []*Visit
	for {
		s := &Visit{}
		if err := sessions.Create(ctx, s); err != nil {
			if !strings.Contains(err.Error(), "full") || s.Token != "" {
				t.Fatalf("Create: got %v and a token %v", err, s.Token != "")
			}
			break
		}
		list = append(list, s)
	}
	if len(list) < 50 {
		t.Fatalf("%d sessions fit", len(list))
	}
	for _, s := range list { // each a little longer by its use: some of them fit
		if _, err := sessions.Lookup(ctx, string(s.Token)); err != nil {
			t.Fatalf("Lookup: %v", err)
		}
		if _, err := sessions.Authenticate(ctx, string(s.Token)); err != nil {
			t.Fatalf("Authenticate: %v", err)
		}
	}
	used, err := sessions.Count(ctx, func(db *gorm.DB) *gorm.DB { return db.Where("last_used_at IS NOT NULL") })
	if err != nil || used == int64(len(list)) {
		t.Errorf("%d of %d uses were noted, %v: the disk is not full", used, len(list), err)
	}
	n, err := sessions.Revoke(ctx, strings.Repeat("x", 255), gormsessions.Active)
	if err == nil || !strings.Contains(err.Error(), "full") || errors.Is(err, gormsessions.ErrNoSession) {
		t.Errorf("Revoke: got %d, %v; want that the disk is full", n, err)
	}
	if active, err := sessions.Count(ctx, gormsessions.Active); err != nil || active != int64(len(list)) {
		t.Errorf("after a Revoke that failed: %d of %d sessions are active, %v", active, len(list), err)
	}
	if err := db.Exec("PRAGMA max_page_count = 6000").Error; err != nil {
		t.Fatal(err)
	}
	if n, err := sessions.Revoke(ctx, strings.Repeat("x", 255), gormsessions.Active); err != nil || n != int64(len(list)) {
		t.Errorf("Revoke, with room: got %d, %v; want %d", n, err, len(list))
	}
	idle(t, "at the end", db)
}

// withoutWrites makes sessions, has the database take no more writes, and uses them.
func withoutWrites(t *testing.T, sessions *gormsessions.Plugin[Visit], refusal string, stop func() error) {
	t.Helper()
	var list []*Visit
	for range 2 {
		s := &Visit{}
		if err := sessions.Create(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		list = append(list, s)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	onlyReads(t, sessions, refusal, list)
}

func onlyReads(t *testing.T, sessions *gormsessions.Plugin[Visit], refusal string, list []*Visit) {
	t.Helper()
	ctx := t.Context()
	for _, s := range list {
		if _, err := sessions.Lookup(ctx, string(s.Token)); err != nil {
			t.Errorf("Lookup: %v", err)
		}
		got, err := sessions.Authenticate(ctx, string(s.Token))
		if err != nil {
			t.Errorf("Authenticate, with a use that is due: %v", err)
		} else if got.LastUsedAt != nil {
			t.Errorf("Authenticate: got last used at %v, which was not stored", got.LastUsedAt)
		}
	}
	s, before := list[0], *list[0]
	for what, fn := range map[string]func() error{
		"Create": func() error { return sessions.Create(ctx, &Visit{}) },
		"Revoke": func() error { _, err := sessions.Revoke(ctx, "test", gormsessions.WithID(s.ID)); return err },
		"Rotate": func() error { return sessions.Rotate(ctx, s) },
		"Extend": func() error { return sessions.Extend(ctx, s) },
	} {
		if err := fn(); err == nil || errors.Is(err, gormsessions.ErrNoSession) || !strings.Contains(err.Error(), refusal) {
			t.Errorf("%s: got %v, want the database's own error, %q", what, err, refusal)
		}
	}
	if s.Token != before.Token {
		t.Error("a rotation that failed left a token")
	}
	if _, err := sessions.Authenticate(ctx, string(s.Token)); err != nil {
		t.Errorf("Authenticate, after a Revoke that failed loudly: %v", err)
	}
}
