package gormsessions_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gormsessions/gormsessions"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

// errorLog is a GORM logger that keeps errors.
type errorLog struct {
	logger.Interface
	mu   sync.Mutex
	list []string
}

func (l *errorLog) Error(_ context.Context, format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, fmt.Sprintf(format, args...))
}

// pruning is a database with a plugin that notes when it prunes.
type pruning struct {
	db       *gorm.DB
	sessions *gormsessions.Plugin[UserSession]
	log      *errorLog
	mu       sync.Mutex
	pruned   []string
	fail     error
}

func startPruning(t *testing.T) *pruning {
	t.Helper()
	p := &pruning{log: &errorLog{Interface: logger.Discard}}
	start := time.Now()
	var err error
	p.db, err = gorm.Open(sqlite.Open("file:"+t.Name()+"?mode=memory&_foreign_keys=on"), &gorm.Config{Logger: p.log})
	if err != nil {
		t.Fatal(err)
	}
	pool, err := p.db.DB()
	if err != nil {
		t.Fatal(err)
	}
	pool.SetMaxOpenConns(1)
	t.Cleanup(func() { _ = pool.Close() })
	p.sessions = gormsessions.New[UserSession](gormsessions.Config{OnEvent: func(_ context.Context, e gormsessions.Event) {
		if e.Kind == gormsessions.EventPruned {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.pruned = append(p.pruned, fmt.Sprintf("%d at %v", e.Count, time.Since(start).Round(time.Second)))
		}
	}})
	if err := p.db.Use(p.sessions); err != nil {
		t.Fatal(err)
	}
	if err := p.db.Callback().Query().Before("gorm:query").Register("test:fail", func(db *gorm.DB) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.fail != nil {
			_ = db.AddError(p.fail)
		}
	}); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *pruning) failWith(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fail = err
}

// sign stores n sessions that expire after d.
func (p *pruning) sign(t *testing.T, n int, d time.Duration) {
	t.Helper()
	user := User{Email: fmt.Sprint(n, " sessions of ", d)}
	if err := p.db.Create(&user).Error; err != nil {
		t.Fatal(err)
	}
	expires := time.Now().Add(d)
	for range n {
		var s UserSession
		s.OwnerID, s.ExpiresAt = user.ID, &expires
		if err := p.db.Create(&s).Error; err != nil {
			t.Fatal(err)
		}
	}
}

func TestRunPruner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startPruning(t)
		p.sign(t, 3, 0)
		p.sign(t, 2, 30*time.Minute)
		p.sign(t, 1, 90*time.Minute)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- p.sessions.RunPruner(ctx, time.Hour) }()
		<-time.After(150 * time.Minute) // the bubble's clock jumps
		cancel()
		if err := <-done; err != nil {
			t.Errorf("RunPruner: got %v, want nil", err)
		}
		want := []string{"3 at 0s", "2 at 1h0m0s", "1 at 2h0m0s"}
		if !slices.Equal(p.pruned, want) {
			t.Errorf("pruned %q, want %q", p.pruned, want)
		}
		if len(p.log.list) > 0 {
			t.Errorf("logged %q", p.log.list)
		}
	})
}

// A database that is down ends neither the boot nor the pruner.
func TestRunPrunerDatabaseDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startPruning(t)
		p.sign(t, 1, 0)
		p.failWith(errors.New("the database is down"))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- p.sessions.RunPruner(ctx, 10*time.Second) }()
		<-time.After(30 * time.Second)
		p.failWith(nil)
		<-time.After(10 * time.Second)
		p.failWith(errors.New("the database is down again"))
		<-time.After(10 * time.Second)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("RunPruner: got %v, want nil", err)
		}
		if want := []string{"1 at 35s"}; !slices.Equal(p.pruned, want) {
			t.Errorf("pruned %q, want %q", p.pruned, want)
		}
		// After 0, 1, 3, 7, 15, 25 seconds; at 35 it works; at 45, 46 and 48 not.
		var waits []string
		for _, line := range p.log.list {
			if !strings.HasPrefix(line, "gormsessions: prune user_sessions: trying again in ") || !strings.Contains(line, "the database is down") {
				t.Errorf("logged %q", line)
			}
			waits = append(waits, strings.Split(strings.TrimPrefix(line, "gormsessions: prune user_sessions: trying again in "), ":")[0])
		}
		if want := []string{"1s", "2s", "4s", "8s", "10s", "10s", "1s", "2s", "4s"}; !slices.Equal(waits, want) {
			t.Errorf("waited %q, want %q", waits, want)
		}
	})
}

// A long outage is met with patience.
func TestRunPrunerLongOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startPruning(t)
		p.failWith(errors.New("the database is down"))
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Hour)
		defer cancel()
		if err := p.sessions.RunPruner(ctx, time.Hour); err != nil {
			t.Errorf("RunPruner: got %v, want nil", err)
		}
		if n := len(p.log.list); n < 100 || n > 115 {
			t.Errorf("%d tries in 100 hours", n)
		}
	})
}

func TestRunPrunerRefuses(t *testing.T) {
	p := startPruning(t)
	if err := p.sessions.RunPruner(t.Context(), 0); !errors.Is(err, gormsessions.ErrInvalidValue) {
		t.Errorf("no interval: got %v", err)
	}
	if err := p.sessions.With(nil).RunPruner(t.Context(), time.Hour); !errors.Is(err, gormsessions.ErrNotRegistered) {
		t.Errorf("With(nil): got %v", err)
	}
	if err := gormsessions.New[UserSession](gormsessions.Config{}).RunPruner(t.Context(), time.Hour); !errors.Is(err, gormsessions.ErrNotRegistered) {
		t.Errorf("not registered: got %v", err)
	}
}
