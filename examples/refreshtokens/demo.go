package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// demonstration is the client, and the clock.
type demonstration struct {
	out   io.Writer
	ahead atomic.Int64 // of the machine's clock
	url   string
	steps int
}

// demonstrate runs the service and plays its client, and a thief. An answer that
// is not the one expected is an error.
func demonstrate(ctx context.Context, out io.Writer) error {
	d := &demonstration{out: out}
	log := slog.New(slog.NewTextHandler(indented{out}, &slog.HandlerOptions{Level: slog.LevelWarn,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}}))
	return run(ctx, "localhost:0", d.now, log, d.play)
}

func (d *demonstration) now() time.Time { return time.Now().Add(time.Duration(d.ahead.Load())) }

func (d *demonstration) later(t time.Duration) { d.ahead.Add(int64(t)) }

func (d *demonstration) play(ctx context.Context, url string) error {
	d.url = url
	defer http.DefaultClient.CloseIdleConnections()
	credentials := map[string]string{"email": exampleEmail, "password": examplePassword, "device": "phone"}

	d.step("Sign in: a signed access token for 5 minutes, a refresh token in the database")
	first, err := d.tokens(ctx, "/login", credentials)
	if err != nil {
		return err
	}
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(first.Access, ".")[1])
	if err != nil {
		return err
	}
	fmt.Fprintf(d.out, "   access   %s\n   refresh  %s…\n", payload, first.Refresh[:16])
	if err := d.expect(ctx, "GET /me", first.Access, nil, http.StatusOK, "no query: the signature says it"); err != nil {
		return err
	}

	d.step("Five minutes later it has expired; the refresh token is exchanged for two new ones")
	d.later(accessLife)
	if err := d.expect(ctx, "GET /me", first.Access, nil, http.StatusUnauthorized, "expired"); err != nil {
		return err
	}
	second, err := d.tokens(ctx, "/refresh", refreshWith(first))
	if err != nil {
		return err
	}
	if err := d.expect(ctx, "GET /me", second.Access, nil, http.StatusOK, "the new one"); err != nil {
		return err
	}

	d.step("Two tabs refresh at once: nobody is signed out, one of them has the new refresh token")
	var tabs [2]tokens
	var errs [2]error
	var both sync.WaitGroup
	for i := range tabs {
		both.Go(func() { tabs[i], errs[i] = d.tokens(ctx, "/refresh", refreshWith(second)) })
	}
	both.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	third := tabs[0]
	if third.Refresh == "" {
		third = tabs[1]
	}
	if (tabs[0].Refresh == "") == (tabs[1].Refresh == "") {
		return errors.New("two refreshes at once: not exactly one has the new refresh token")
	}
	fmt.Fprintln(d.out, "   POST /refresh  200  an access token and the refresh token")
	fmt.Fprintln(d.out, "   POST /refresh  200  an access token")

	d.step("A thief comes a minute later with a refresh token that was exchanged: the family ends")
	d.later(time.Minute)
	if err := d.expect(ctx, "POST /refresh", "", refreshWith(second), http.StatusUnauthorized, "the thief's"); err != nil {
		return err
	}
	if err := d.expect(ctx, "POST /refresh", "", refreshWith(third), http.StatusUnauthorized, "the client's: it has to sign in again"); err != nil {
		return err
	}

	d.step("An access token that was handed out is good until it expires, except where the service also asks for the session")
	if err := d.expect(ctx, "GET /me", third.Access, nil, http.StatusOK, "until it expires"); err != nil {
		return err
	}
	if err := d.expect(ctx, "DELETE /me", third.Access, nil, http.StatusUnauthorized, "its session has ended"); err != nil {
		return err
	}

	d.step("Sign out")
	fourth, err := d.tokens(ctx, "/login", credentials)
	if err != nil {
		return err
	}
	if err := d.expect(ctx, "POST /logout", "", refreshWith(fourth), http.StatusNoContent, "the session is revoked"); err != nil {
		return err
	}
	if err := d.expect(ctx, "POST /refresh", "", refreshWith(fourth), http.StatusUnauthorized, "revoked"); err != nil {
		return err
	}

	d.step("Forged access tokens")
	body := strings.Split(fourth.Access, ".")
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"at+jwt"}`))
	other := base64.RawURLEncoding.EncodeToString(bytes.Replace(payload, []byte(`"sub":"1"`), []byte(`"sub":"2"`), 1))
	if err := d.expect(ctx, "GET /me", none+"."+body[1]+".", nil, http.StatusUnauthorized, "alg none"); err != nil {
		return err
	}
	return d.expect(ctx, "GET /me", body[0]+"."+other+"."+body[2], nil, http.StatusUnauthorized, "another user in it")
}

func refreshWith(t tokens) map[string]string { return map[string]string{"refresh_token": t.Refresh} }

func (d *demonstration) step(title string) {
	d.steps++
	fmt.Fprintf(d.out, "\n%d. %s\n\n", d.steps, title)
}

// expect makes a request and shows its outcome.
func (d *demonstration) expect(ctx context.Context, route, access string, body any, want int, note string) error {
	status, _, err := d.call(ctx, route, access, body)
	if err != nil {
		return err
	}
	if status != want {
		return fmt.Errorf("%s (%s): got %d, want %d", route, note, status, want)
	}
	fmt.Fprintf(d.out, "   %-14s %d  %s\n", route, status, note)
	return nil
}

// tokens makes a request that is to be answered with some.
func (d *demonstration) tokens(ctx context.Context, path string, body any) (t tokens, err error) {
	status, answer, err := d.call(ctx, "POST "+path, "", body)
	if err != nil {
		return t, err
	}
	if status != http.StatusOK {
		return t, fmt.Errorf("%s: got %d, want 200: %s", path, status, answer)
	}
	return t, json.Unmarshal(answer, &t)
}

func (d *demonstration) call(ctx context.Context, route, access string, body any) (int, []byte, error) {
	method, path, _ := strings.Cut(route, " ")
	text, err := json.Marshal(body)
	if err != nil {
		return 0, nil, err
	}
	r, err := http.NewRequestWithContext(ctx, method, d.url+path, bytes.NewReader(text))
	if err != nil {
		return 0, nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	if access != "" {
		r.Header.Set("Authorization", "Bearer "+access)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	return response.StatusCode, answer, err
}

// indented is where the service logs to.
type indented struct{ out io.Writer }

func (w indented) Write(line []byte) (int, error) {
	_, err := fmt.Fprintf(w.out, "   log: %s", line)
	return len(line), err
}
