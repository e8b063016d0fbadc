// Command demo is a small site with accounts, to see what gormsessions does: sign
// in with two browsers, sign one out from the other, make an API key.
//
//	go run ./examples/demo
//	go run ./examples/demo -sample
//	go run ./examples/demo -dsn postgres://user:password@localhost/app
//	go run ./examples/demo -dsn 'user:password@tcp(127.0.0.1:3306)/app?parseTime=true'
//
// Its tables begin with demo_, so a database of yours has room for it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"gorm.io/driver/mysql"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
	"gorm.io/gorm/schema"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	if err := run(ctx, os.Args[1:], os.Stderr); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends.
func run(ctx context.Context, args []string, out io.Writer) (err error) {
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(out)
	addr := flags.String("addr", "localhost:8080", "`address` to listen on")
	dsn := flags.String("dsn", "demo.db", "SQLite `database` (app.db, file:…), postgres://…, or MariaDB as user:password@tcp(host:3306)/app")
	sample := flags.Bool("sample", false, "add an account with some weeks of sign-ins, to look around in")
	insecure := flags.Bool("insecure-cookie", false, "send the cookie without TLS too: for Safari, which wants TLS even on localhost")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("what is %q? All settings are flags: see -help", flags.Arg(0))
	}

	log := slog.New(slog.NewTextHandler(out, nil))
	db, err := open(*dsn, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closePool(db)) }()
	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	defer listener.Close()

	s, err := newSite(db, options{log: log, url: urlOf(listener.Addr()), insecureCookie: *insecure})
	if err != nil {
		return err
	}
	if *sample {
		if err := s.addSample(ctx, out); err != nil {
			return fmt.Errorf("sample: %w", err)
		}
	}
	return s.serve(ctx, listener)
}

// serve runs the server and the pruners until ctx ends, then lets the requests
// under way finish.
func (s *site) serve(ctx context.Context, listener net.Listener) error {
	handler, err := s.handler()
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}
	server.RegisterOnShutdown(s.live.close) // the streams would keep it open for ever

	ctx, cancel := context.WithCancel(ctx)
	var background sync.WaitGroup
	defer background.Wait()
	defer cancel()
	for _, prune := range []func(context.Context, time.Duration) error{s.sessions.RunPruner, s.keys.RunPruner} {
		background.Go(func() {
			if err := prune(ctx, time.Hour); err != nil {
				s.log.Error("the pruner stopped", "error", err)
			}
		})
	}

	served := make(chan error, 1)
	background.Go(func() { served <- server.Serve(listener) })
	s.log.Info("listening", "url", s.url)
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	s.log.Info("stopping")
	patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return server.Shutdown(patience)
}

// urlOf is how a browser on this machine gets to the address. It is localhost, not
// 127.0.0.1, since for that name browsers take Secure cookies without TLS.
func urlOf(addr net.Addr) string {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok || tcp.IP.IsLoopback() || tcp.IP.IsUnspecified() {
		_, port, _ := net.SplitHostPort(addr.String())
		return "http://localhost:" + port
	}
	return "http://" + addr.String()
}

func open(dsn string, log *slog.Logger) (*gorm.DB, error) {
	config := &gorm.Config{
		NamingStrategy: schema.NamingStrategy{TablePrefix: "demo_"},
		TranslateError: true, // an e-mail that is taken is gorm.ErrDuplicatedKey
		// Without the parameters: they are people's addresses.
		Logger: logger.NewSlogLogger(log, logger.Config{
			LogLevel: logger.Warn, SlowThreshold: time.Second, ParameterizedQueries: true, IgnoreRecordNotFoundError: true}),
	}
	switch {
	case strings.HasPrefix(dsn, "postgres://"), strings.HasPrefix(dsn, "postgresql://"):
		return gorm.Open(postgres.Open(dsn), config)
	case strings.Contains(dsn, "@tcp("), strings.Contains(dsn, "@unix("):
		return gorm.Open(mysql.Open(dsn), config)
	case strings.HasSuffix(dsn, ".db"), strings.HasPrefix(dsn, "file:"):
		if !strings.Contains(dsn, "?") {
			// Immediate: a transaction that reads first and writes later would
			// fail where another wrote in between; this one waits its turn.
			dsn += "?_foreign_keys=on&_journal_mode=WAL&_busy_timeout=5000&_txlock=immediate"
		}
		db, err := gorm.Open(sqlite.Open(dsn), config)
		if err != nil {
			return nil, err
		}
		pool, err := db.DB()
		if err != nil {
			return nil, err
		}
		// One connection writes at a time, and those that wait for it poll.
		pool.SetMaxOpenConns(8)
		pool.SetMaxIdleConns(8)
		return db, nil
	}
	return nil, errors.New("-dsn: want a SQLite file (app.db, file:…), postgres://… or user:password@tcp(host:3306)/app") // it may hold a password: not repeated
}

func closePool(db *gorm.DB) error {
	pool, err := db.DB()
	if err != nil {
		return err
	}
	return pool.Close()
}
