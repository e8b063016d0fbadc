// Command refreshtokens is a small service with short-lived access tokens, which
// it verifies without the database, and refresh tokens, which are sessions in it.
//
//	POST /login    {"email", "password", "device"}: an access and a refresh token
//	POST /refresh  {"refresh_token"}: a new one of each
//	POST /logout   {"refresh_token"}: its session ends
//	GET /me        with an access token
//	DELETE /me     with one whose session has not ended
//
// A refresh token works once. One that comes back after a short grace is in two
// hands: its session ends, and with it every refresh token of its family (RFC
// 9700, 4.14.2).
//
// An access token cannot be taken back: it is good until it expires, at most five
// minutes after its session has ended. Where that is too long, as before an
// account is deleted, the service also asks the database for the session.
//
//	go run ./examples/refreshtokens                        # plays all sides, and prints what happens
//	go run ./examples/refreshtokens -addr localhost:8080   # serves
package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

const (
	exampleEmail    = "ada@example.com"
	examplePassword = "correct horse battery staple"
)

func main() {
	addr := flag.String("addr", "", "serve at this `address` (default: a demonstration)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := error(nil)
	if *addr == "" {
		err = demonstrate(ctx, os.Stdout)
	} else {
		err = run(ctx, *addr, time.Now, slog.Default(), func(ctx context.Context, url string) error {
			fmt.Printf("serving at %s, for %s with the password %q\n", url, exampleEmail, examplePassword)
			<-ctx.Done()
			return nil
		})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "refreshtokens:", err)
		os.Exit(1)
	}
}

// run serves, with a database of its own, as long as use runs.
func run(ctx context.Context, addr string, now func() time.Time, log *slog.Logger, use func(ctx context.Context, url string) error) (err error) {
	dir, err := os.MkdirTemp("", "refreshtokens")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	// An application has its keys from a secret store. After a start with new
	// ones the access tokens that are out fail, and clients refresh.
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return err
	}
	s, err := open(filepath.Join(dir, "app.db"), newKeys(key), now, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.signUp(ctx, exampleEmail, examplePassword); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}

	ctx, stop := context.WithCancel(ctx)
	server := &http.Server{Handler: s.handler(), ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute}
	var background sync.WaitGroup
	var served, pruned error
	background.Go(func() {
		defer stop() // a server that fails ends the rest
		served = server.Serve(listener)
	})
	background.Go(func() { pruned = s.logins.RunPruner(ctx, time.Hour) })

	err = use(ctx, "http://"+listener.Addr().String())
	stop()
	// net/http waits 5 seconds for a connection that has not sent anything.
	grace, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err = errors.Join(err, server.Shutdown(grace))
	background.Wait()
	if errors.Is(served, http.ErrServerClosed) {
		served = nil
	}
	return errors.Join(err, served, pruned)
}
