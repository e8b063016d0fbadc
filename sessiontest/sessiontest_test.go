package sessiontest_test

import (
	"errors"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/sessionhttp"
	"github.com/gormsessions/gormsessions/sessiontest"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

type Guest struct {
	gormsessions.Base
	Name string
}

func open(t *testing.T, clock *sessiontest.Clock) *gormsessions.Plugin[Guest] {
	t.Helper()
	db, err := gorm.Open(sqlite.Open(filepath.Join(t.TempDir(), "test.db")), &gorm.Config{NowFunc: clock.Now, Logger: logger.Discard})
	if err != nil {
		t.Fatal(err)
	}
	pool, err := db.DB()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pool.Close() })
	guests := gormsessions.New[Guest](gormsessions.Config{})
	if err := db.Use(guests); err != nil {
		t.Fatal(err)
	}
	return guests
}

func TestSignIn(t *testing.T) {
	clock := sessiontest.NewClock(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	guests := open(t, clock)
	for _, c := range []struct {
		name   string
		source sessionhttp.Source
		carry  []sessiontest.Carrier
	}{
		{"default", sessionhttp.Cookie{}, nil},
		{"cookie", sessionhttp.Cookie{Name: "guest"}, []sessiontest.Carrier{sessiontest.Cookie("guest")}},
		{"bearer", sessionhttp.Bearer(), []sessiontest.Carrier{sessiontest.Bearer}},
		{"header", sessionhttp.Header("X-Api-Key"), []sessiontest.Carrier{sessiontest.Header("X-Api-Key")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			web, err := sessionhttp.New(guests, sessionhttp.Config{Sources: []sessionhttp.Source{c.source}})
			if err != nil {
				t.Fatal(err)
			}
			req := httptest.NewRequest("GET", "/", nil)
			req.Header.Set("Cookie", "theme=dark")
			ada, bob := Guest{Name: "Ada"}, Guest{Name: "Bob"}
			for _, guest := range []*Guest{&ada, &bob, &ada} {
				sessiontest.SignIn(t, guests, req, guest, c.carry...)
				got, err := web.Check(req)
				if err != nil || got.Name != guest.Name {
					t.Errorf("got %v, %v, want %s", got, err, guest.Name)
				}
			}
			if theme, err := req.Cookie("theme"); err != nil || theme.Value != "dark" {
				t.Errorf("the other cookie: got %v, %v", theme, err)
			}
		})
	}
}

func TestClock(t *testing.T) {
	start := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	clock := sessiontest.NewClock(start)
	guests := open(t, clock)
	web, err := sessionhttp.New(guests, sessionhttp.Config{})
	if err != nil {
		t.Fatal(err)
	}
	req := httptest.NewRequest("GET", "/", nil)
	ada := Guest{Name: "Ada"}
	sessiontest.SignIn(t, guests, req, &ada)
	for _, step := range []struct {
		move func()
		want error
	}{
		{func() { clock.Advance(6 * 24 * time.Hour) }, nil},
		{func() { clock.Advance(6 * 24 * time.Hour) }, nil}, // it was extended
		{func() { clock.Advance(8 * 24 * time.Hour) }, gormsessions.ErrNoSession},
		{func() { clock.Set(start) }, nil},
	} {
		step.move()
		if _, err := web.Check(req); !errors.Is(err, step.want) {
			t.Errorf("at %v: got %v, want %v", clock.Now(), err, step.want)
		}
	}
}
