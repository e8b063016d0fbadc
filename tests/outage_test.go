package tests

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/internal/conformance"
	"github.com/gormsessions/gormsessions/tests/internal/pgserver"
	"gorm.io/driver/postgres"
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
		_, err := sessions.Lookup(t.Context(), string(o.session.Token))
		switch {
		case err != nil && err != gormsessions.ErrNoSession:
			t.Fatal(err)
		case o.revoked && err == nil, !o.asked && err != nil:
			lost++
		}
	}
	return lost
}
