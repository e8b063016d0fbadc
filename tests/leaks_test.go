package tests

import (
	"context"
	"testing"
	"time"

	"github.com/glebarez/sqlite"
	"github.com/gormsessions/gormsessions"
	"go.uber.org/goleak"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

// Visit is a session without an owner.
type Visit struct{ gormsessions.Base }

// TestR49StartAndStop starts and stops an application's sessions a thousand times:
// no goroutine is left.
func TestR49StartAndStop(t *testing.T) {
	before := goleak.IgnoreCurrent()
	for range 1000 {
		db, err := gorm.Open(sqlite.Open("file::memory:"), &gorm.Config{Logger: logger.Discard})
		if err != nil {
			t.Fatal(err)
		}
		pool, err := db.DB()
		if err != nil {
			t.Fatal(err)
		}
		pool.SetMaxOpenConns(1)
		sessions := gormsessions.New[Visit](gormsessions.Config{})
		if err := db.Use(sessions); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- sessions.RunPruner(ctx, time.Hour) }()
		var s Visit
		if err := sessions.Create(ctx, &s); err != nil {
			t.Fatal(err)
		}
		if _, err := sessions.Authenticate(ctx, string(s.Token)); err != nil {
			t.Fatal(err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if err := pool.Close(); err != nil {
			t.Fatal(err)
		}
	}
	goleak.VerifyNone(t, before)
}

// TestR49Leak is the negative control.
func TestR49Leak(t *testing.T) {
	before := goleak.IgnoreCurrent()
	stop := make(chan struct{})
	go func() { <-stop }()
	if goleak.Find(before) == nil {
		t.Error("a goroutine that is left is not found")
	}
	close(stop)
}
