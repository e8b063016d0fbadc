package tests

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/internal/brokennet"
	"github.com/gormsessions/gormsessions/internal/conformance"
	"github.com/gormsessions/gormsessions/sessioncache"
	"github.com/gormsessions/gormsessions/sessioncache/pgnotify"
	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

// TestR49Cache: a cache that is closed leaves nothing running, whatever the network
// was like.
func TestR49Cache(t *testing.T) {
	dialector := conformance.PostgreSQL().Dialect(t)
	config, err := pgx.ParseConfig(dialector.(*postgres.Dialector).DSN)
	if err != nil {
		t.Fatal(err)
	}
	addr := redisAt(t)
	tables := gormsessions.CacheTables{Sessions: "visits", SessionKey: "id"}
	for _, state := range []string{brokennet.Forwarding, brokennet.Swallowing, brokennet.Refusing} {
		for _, kind := range []string{"pgnotify", "Redis"} {
			t.Run(kind+" "+state, func(t *testing.T) {
				before := goleak.IgnoreCurrent()
				db, err := gorm.Open(dialector, &gorm.Config{Logger: logger.Discard})
				if err != nil {
					t.Fatal(err)
				}
				pool, err := db.DB()
				if err != nil {
					t.Fatal(err)
				}
				if err := db.Use(gormsessions.New[Visit](gormsessions.Config{})); err != nil {
					t.Fatal(err)
				}
				server := net.JoinHostPort(config.Host, strconv.Itoa(int(config.Port)))
				if kind == "Redis" {
					server = addr
				}
				proxy := brokennet.New(t, server)
				client := newRedis(proxy.Addr())
				for range 20 {
					proxy.Set(brokennet.Forwarding)
					var bus sessioncache.Bus = RedisBus{client, "gormsessions_" + rand.Text()}
					if kind == "pgnotify" {
						bus = pgnotify.New(pgnotify.Config{BeforeConnect: func(_ context.Context, c *pgx.ConnConfig) error {
							c.Host, c.Port, c.Fallbacks = "127.0.0.1", proxy.Port(), nil
							return nil
						}})
					}
					cache, err := sessioncache.New(sessioncache.Config{Bus: bus, Lease: 40 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
					if err != nil {
						t.Fatal(err)
					}
					if err := cache.Migrate(db, tables); err != nil {
						t.Fatal(err)
					}
					if err := cache.Open(db, tables); err != nil {
						t.Fatal(err)
					}
					await(t, "serving", serving(cache))
					proxy.Set(state)
					if state != brokennet.Forwarding {
						await(t, "bypassed", func() bool { return !cache.Stats().Serving })
					}
					if err := cache.Close(); err != nil {
						t.Fatal(err)
					}
				}
				proxy.Close()
				if err := client.Close(); err != nil {
					t.Fatal(err)
				}
				if err := pool.Close(); err != nil {
					t.Fatal(err)
				}
				goleak.VerifyNone(t, before)
			})
		}
	}
}
