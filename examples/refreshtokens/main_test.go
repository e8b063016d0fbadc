package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
)

// client is a service and who talks to it.
type client struct {
	t       *testing.T
	s       *service
	handler http.Handler
	log     *bytes.Buffer
	ahead   atomic.Int64
}

func newClient(t *testing.T) *client {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &client{t: t, log: new(bytes.Buffer)}
	now := func() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }
	log := slog.New(slog.NewTextHandler(c.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	c.s, err = open(filepath.Join(t.TempDir(), "app.db"), newKeys(key), now, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.s.close() })
	c.handler, c.s.rounds = c.s.handler(), 1000 // 600,000 would be most of the test's time
	if err := c.s.signUp(t.Context(), exampleEmail, examplePassword); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *client) later(d time.Duration) { c.ahead.Add(int64(d)) }

func (c *client) do(method, path, contentType, access, body string) *httptest.ResponseRecorder {
	c.t.Helper()
	r := httptest.NewRequestWithContext(c.t.Context(), method, path, strings.NewReader(body))
	r.Header.Set("Content-Type", contentType)
	if access != "" {
		r.Header.Set("Authorization", "Bearer "+access)
	}
	w := httptest.NewRecorder()
	c.handler.ServeHTTP(w, r)
	return w
}

// post sends JSON, and wants a status.
func (c *client) post(path string, body map[string]string, want int) tokens {
	c.t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		c.t.Fatal(err)
	}
	w := c.do("POST", path, "application/json", "", string(text))
	if w.Code != want {
		c.t.Errorf("POST %s: got %d %s, want %d", path, w.Code, w.Body, want)
	}
	if got := w.Header().Get("Cache-Control"); w.Body.Len() > 0 && got != "no-store" {
		c.t.Errorf("POST %s: Cache-Control is %q", path, got)
	}
	var got tokens
	if w.Body.Len() > 0 {
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
			c.t.Errorf("POST %s: %v", path, err)
		}
	}
	return got
}

func (c *client) login() tokens {
	c.t.Helper()
	return c.post("/login", map[string]string{"email": exampleEmail, "password": examplePassword, "device": "phone"}, 200)
}

func (c *client) refresh(t tokens, want int) tokens {
	c.t.Helper()
	return c.post("/refresh", refreshWith(t), want)
}

func (c *client) me(method, access string, want int) {
	c.t.Helper()
	w := c.do(method, "/me", "", access, "")
	if w.Code != want {
		c.t.Errorf("%s /me: got %d %s, want %d", method, w.Code, w.Body, want)
	}
	if got := w.Header().Get("WWW-Authenticate"); want == 401 && method == "GET" && !strings.HasPrefix(got, "Bearer") {
		c.t.Errorf("%s /me: the challenge is %q", method, got)
	}
}

func (c *client) only() Login {
	c.t.Helper()
	list, err := c.s.logins.List(c.t.Context())
	if err != nil || len(list) != 1 {
		c.t.Fatalf("%d logins, %v", len(list), err)
	}
	return list[0]
}

func TestDemonstration(t *testing.T) {
	var out bytes.Buffer
	if err := demonstrate(t.Context(), &out); err != nil {
		t.Fatalf("%v after\n%s", err, &out)
	}
	if !strings.Contains(out.String(), `msg="session reused"`) {
		t.Errorf("no reuse was logged:\n%s", &out)
	}
}

func TestLogin(t *testing.T) {
	c := newClient(t)
	for _, wrong := range []map[string]string{
		{"email": exampleEmail, "password": "wrong"},
		{"email": exampleEmail, "password": ""},
		{"email": exampleEmail},
		{"email": "nobody@example.com", "password": examplePassword},
		{"email": "nobody@example.com", "password": ""},
		{},
	} {
		if got := c.post("/login", wrong, 401); got != (tokens{}) {
			t.Errorf("%v: got tokens", wrong)
		}
	}
	got := c.login()
	if got.Type != "Bearer" || got.ExpiresIn != 300 || !strings.HasPrefix(got.Refresh, "refresh_") {
		t.Errorf("got a %s token for %d s, and the refresh token %.8s…", got.Type, got.ExpiresIn, got.Refresh)
	}
	c.me("GET", got.Access, 200)
	c.me("GET", "", 401)
}

func TestRefresh(t *testing.T) {
	c := newClient(t)
	first := c.login()
	c.later(accessLife - 2*time.Second)
	c.me("GET", first.Access, 200)
	c.later(3 * time.Second)
	c.me("GET", first.Access, 401)

	second := c.refresh(first, 200)
	if second.Refresh == "" || second.Refresh == first.Refresh || second.Access == first.Access {
		t.Error("the tokens were not exchanged")
	}
	c.me("GET", second.Access, 200)

	// In its grace, as by a second tab: no refresh token, and nobody is signed out.
	if again := c.refresh(first, 200); again.Refresh != "" || again.Access == "" {
		t.Errorf("in its grace: access token %t, refresh token %t", again.Access != "", again.Refresh != "")
	}
	c.later(20 * 24 * time.Hour)
	third := c.refresh(second, 200)
	c.later(20 * 24 * time.Hour) // it slides
	fourth := c.refresh(third, 200)
	c.later(31 * 24 * time.Hour)
	c.refresh(fourth, 401)
}

func TestReplay(t *testing.T) {
	c := newClient(t)
	first := c.login()
	second := c.refresh(first, 200)
	third := c.refresh(second, 200)
	c.later(time.Minute)
	c.refresh(first, 401) // not only the one before
	if got := c.only(); got.RevokedReason != "reuse" {
		t.Errorf("the session was revoked for %q", got.RevokedReason)
	}
	for _, dead := range []tokens{third, second, first} {
		c.refresh(dead, 401)
	}
	c.me("GET", third.Access, 200) // until it expires
	c.me("DELETE", third.Access, 401)
	c.refresh(c.login(), 200) // other families are not touched
}

func TestRefreshesAtOnce(t *testing.T) {
	c := newClient(t)
	before := c.login()
	for range 5 {
		var mu sync.Mutex
		var next []tokens
		var all sync.WaitGroup
		start := make(chan struct{})
		for range 8 {
			all.Go(func() {
				<-start
				got := c.refresh(before, 200)
				if got.Access == "" {
					t.Error("an answer without an access token")
				}
				if got.Refresh != "" {
					mu.Lock()
					next = append(next, got)
					mu.Unlock()
				}
			})
		}
		close(start)
		all.Wait()
		if len(next) != 1 {
			t.Fatalf("%d answers have a refresh token, want 1", len(next))
		}
		before = next[0]
	}
	c.later(time.Minute)
	c.refresh(before, 200)
}

func TestLogout(t *testing.T) {
	c := newClient(t)
	first := c.login()
	c.post("/logout", refreshWith(first), 204)
	c.refresh(first, 401)
	if got := c.only(); got.RevokedReason != "signed out" {
		t.Errorf("revoked for %q", got.RevokedReason)
	}
	c.me("GET", first.Access, 200) // until it expires
	c.me("DELETE", first.Access, 401)
	c.post("/logout", refreshWith(first), 204) // twice is as once
	c.post("/logout", map[string]string{"refresh_token": "none of ours"}, 204)

	// With a token whose successor was lost.
	second := c.login()
	third := c.refresh(second, 200)
	c.post("/logout", refreshWith(second), 204)
	c.refresh(third, 401)
}

func TestDeleteMe(t *testing.T) {
	c := newClient(t)
	phone, laptop := c.login(), c.login()
	c.me("DELETE", phone.Access, 204)
	c.me("DELETE", laptop.Access, 401)
	c.refresh(laptop, 401)
	c.post("/login", map[string]string{"email": exampleEmail, "password": examplePassword}, 401)
}

func TestDatabaseDown(t *testing.T) {
	c := newClient(t)
	got := c.login()
	if err := c.s.close(); err != nil {
		t.Fatal(err)
	}
	c.refresh(got, 503)
	c.post("/logout", refreshWith(got), 503)
	c.post("/login", map[string]string{"email": exampleEmail, "password": examplePassword}, 503)
	c.me("GET", got.Access, 200) // asks none
	c.me("DELETE", got.Access, 503)
}

func TestBodies(t *testing.T) {
	c := newClient(t)
	const ok = "application/json"
	for _, row := range []struct {
		name, contentType, body string
		want                    int
	}{
		{"a form", "application/x-www-form-urlencoded", "refresh_token=x", 415},
		{"text", "text/plain", `{"refresh_token":"x"}`, 415},
		{"no type", "", `{"refresh_token":"x"}`, 415},
		{"a bad type", "application/json; =", `{"refresh_token":"x"}`, 415},
		{"a charset", "application/json; charset=utf-8", `{"refresh_token":"x"}`, 401},
		{"empty", ok, ``, 400},
		{"no JSON", ok, `refresh_token`, 400},
		{"cut off", ok, `{"refresh_token":"x"`, 400},
		{"a list", ok, `[{"refresh_token":"x"}]`, 400},
		{"a number", ok, `{"refresh_token":1}`, 400},
		{"another field", ok, `{"refresh_token":"x","admin":true}`, 400},
		{"two values", ok, `{"refresh_token":"x"}{"refresh_token":"y"}`, 400},
		{"something after", ok, `{"refresh_token":"x"}]`, 400},
		{"nested deep", ok, strings.Repeat("[", maxBody-1), 400},
		{"large", ok, `{"refresh_token":"` + strings.Repeat("x", maxBody) + `"}`, 413},
		{"large after", ok, `{"refresh_token":"x"}` + strings.Repeat(" ", maxBody), 413},
		{"null", ok, `null`, 401},
		{"no token", ok, `{}`, 401},
		{"bytes", ok, `{"refresh_token":"\u0000\ud800"}`, 401},
	} {
		if w := c.do("POST", "/refresh", row.contentType, "", row.body); w.Code != row.want {
			t.Errorf("%s: got %d %s, want %d", row.name, w.Code, w.Body, row.want)
		}
	}
	for _, device := range []string{strings.Repeat("x", maxDevice+1), "\x00"} {
		c.post("/login", map[string]string{"email": exampleEmail, "password": examplePassword, "device": device}, 400)
	}
	if w := c.do("GET", "/refresh", "", "", ""); w.Code != http.StatusMethodNotAllowed {
		t.Errorf("GET /refresh: got %d", w.Code)
	}
}

func encode(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }

// signed signs any header and payload.
func signed(key ed25519.PrivateKey, header, payload string) string {
	text := encode(header) + "." + encode(payload)
	return text + "." + encode(string(ed25519.Sign(key, []byte(text))))
}

func TestAccessTokens(t *testing.T) {
	_, key, _ := ed25519.GenerateKey(nil)
	_, foreign, _ := ed25519.GenerateKey(nil)
	k, now, session := newKeys(key), time.Unix(1_800_000_000, 0), uuid.New()
	good, err := k.sign("1", session, now)
	if err != nil {
		t.Fatal(err)
	}
	got, err := k.verify(good, now)
	if err != nil || got.Subject != "1" || got.Session != session {
		t.Fatalf("got %+v, %v", got, err)
	}

	parts := strings.Split(good, ".")
	plain := func(part string) string {
		text, err := base64.RawURLEncoding.DecodeString(part)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	header, payload := plain(parts[0]), plain(parts[1])
	change := func(text, from, to string) string {
		if !strings.Contains(text, from) {
			t.Fatalf("there is no %s in %s", from, text)
		}
		return strings.Replace(text, from, to, 1)
	}
	// with has the right signature over another claim.
	with := func(name string, value any) string {
		var c map[string]any
		decoder := json.NewDecoder(strings.NewReader(payload))
		decoder.UseNumber()
		if err := decoder.Decode(&c); err != nil {
			t.Fatal(err)
		}
		c[name] = value
		if value == nil {
			delete(c, name)
		}
		text, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		return signed(key, header, string(text))
	}
	// Signed with the public key as if it were a secret.
	hs256 := func(header string) string {
		mac := hmac.New(sha256.New, key.Public().(ed25519.PublicKey))
		text := encode(header) + "." + parts[1]
		mac.Write([]byte(text))
		return text + "." + encode(string(mac.Sum(nil)))
	}
	flipped := []byte(plain(parts[2]))
	flipped[0] ^= 1
	// The last digit of 64 bytes in base64 has four bits that say nothing.
	const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(digits, good[len(good)-1])
	respelled := good[:len(good)-1] + string(digits[last^1])
	if again, err := base64.RawURLEncoding.DecodeString(strings.Split(respelled, ".")[2]); err != nil || string(again) != plain(parts[2]) {
		t.Fatal("it is not another spelling of the same signature")
	}

	for _, row := range []struct{ name, token string }{
		{"empty", ""},
		{"dots", ".."},
		{"alg none", encode(change(header, "EdDSA", "none")) + "." + parts[1] + "."},
		{"alg none, signed", encode(change(header, "EdDSA", "none")) + "." + parts[1] + "." + parts[2]},
		{"no signature", parts[0] + "." + parts[1] + "."},
		{"two parts", parts[0] + "." + parts[1]},
		{"four parts", good + "."},
		{"HS256 with the public key", hs256(change(header, "EdDSA", "HS256"))},
		{"HS256, called EdDSA", hs256(header)},
		{"another key", signed(foreign, header, payload)},
		{"another key, its own header", signed(foreign, plain(headerFor(foreign.Public().(ed25519.PublicKey))), payload)},
		{"another kid", signed(key, change(header, `"kid":"`, `"kid":"x`), payload)},
		{"another typ", signed(key, change(header, "at+jwt", "JWT"), payload)},
		{"no typ", signed(key, change(header, `,"typ":"at+jwt"`, ""), payload)},
		{"alg eddsa", signed(key, change(header, "EdDSA", "eddsa"), payload)},
		{"a key in the header", signed(foreign, change(header, "{", `{"jwk":{"kty":"OKP"},`), payload)},
		{"crit", signed(key, change(header, "{", `{"crit":["exp"],`), payload)},
		{"tampered", parts[0] + "." + encode(change(payload, `"sub":"1"`, `"sub":"2"`)) + "." + parts[2]},
		{"tampered signature", parts[0] + "." + parts[1] + "." + encode(string(flipped))},
		{"another spelling", respelled},
		{"padded", good + "=="},
		{"a space", good + " "},
		{"line end", parts[0] + "." + parts[1] + "." + parts[2][:10] + "\n" + parts[2][10:]},
		{"too long", good + strings.Repeat("A", maxAccessToken)},
		{"wrong aud", with("aud", "https://other.example.com")},
		{"aud a list", with("aud", []string{audience})},
		{"no aud", with("aud", nil)},
		{"wrong iss", with("iss", "https://evil.example.com")},
		{"no iss", with("iss", nil)},
		{"no sub", with("sub", nil)},
		{"no sid", with("sid", nil)},
		{"no jti", with("jti", nil)},
		{"no exp", with("exp", nil)},
		{"no iat", with("iat", nil)},
		{"exp has come", with("exp", now.Unix())},
		{"a long life", with("exp", now.Add(time.Hour).Unix())},
		{"exp overflows", with("exp", json.Number("9223372036854775807"))},
		{"exp a fraction", with("exp", json.Number("1e400"))},
		{"iat in the future", with("iat", now.Add(time.Minute).Unix())},
		{"no JSON", signed(key, header, "{")},
		{"no object", signed(key, header, "null")},
	} {
		if got, err := k.verify(row.token, now); err == nil {
			t.Errorf("%s: accepted as %+v", row.name, got)
		}
	}
	if _, err := k.verify(with("jti", uuid.New()), now); err != nil {
		t.Errorf("what else is signed so is accepted: %v", err)
	}
	for _, row := range []struct {
		at   time.Time
		want bool
	}{
		{now.Add(accessLife - 2*time.Second), true},
		{now.Add(accessLife), false},
		{now.Add(-20 * time.Second), true}, // of a node whose clock is ahead
		{now.Add(-time.Minute), false},
	} {
		if _, err := k.verify(good, row.at); (err == nil) != row.want {
			t.Errorf("at %v: got %v", row.at.Sub(now), err)
		}
	}
}

func TestKeyRotation(t *testing.T) {
	_, old, _ := ed25519.GenerateKey(nil)
	_, next, _ := ed25519.GenerateKey(nil)
	public := func(key ed25519.PrivateKey) ed25519.PublicKey { return key.Public().(ed25519.PublicKey) }
	now := time.Now()
	steps := []*keys{newKeys(old), newKeys(old, public(next)), newKeys(next, public(old)), newKeys(next)}
	// Nodes of one step and the one after it run at once, and accept each other's.
	for i, signer := range steps {
		token, err := signer.sign("1", uuid.New(), now)
		if err != nil {
			t.Fatal(err)
		}
		for j, verifier := range steps {
			_, err := verifier.verify(token, now)
			if near := i-j <= 1 && j-i <= 1; near && err != nil {
				t.Errorf("step %d refuses a token of step %d", j, i)
			}
		}
		if _, err := steps[3].verify(token, now); i < 2 && err == nil {
			t.Errorf("the old key is accepted at the end")
		}
	}
}

func FuzzVerify(f *testing.F) {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	k, now := newKeys(key), time.Unix(1_800_000_000, 0)
	good, err := k.sign("1", uuid.New(), now)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good + ".")
	f.Add(k.header + ".." + strings.Repeat("A", signatureLength))
	f.Fuzz(func(t *testing.T, token string) {
		if _, err := k.verify(token, now); err == nil && token != good {
			t.Errorf("%q is accepted", token)
		}
	})
}

func TestNoSecretIsLogged(t *testing.T) {
	c := newClient(t)
	first := c.login()
	second := c.refresh(first, 200)
	if err := c.s.db.Migrator().DropTable("logins_retired_tokens"); err != nil {
		t.Fatal(err)
	}
	c.refresh(second, 503) // fails in the middle
	if err := c.s.close(); err != nil {
		t.Fatal(err)
	}
	c.refresh(second, 503)
	log := c.log.String()
	for _, secret := range []string{first.Refresh, second.Refresh, first.Access, second.Access, examplePassword} {
		if strings.Contains(log, secret) {
			t.Errorf("%s is in the log", secret)
		}
	}
	for _, want := range []string{"session created", "session rotated", "request failed"} {
		if !strings.Contains(log, want) {
			t.Errorf("%q is not in the log:\n%s", want, log)
		}
	}
}
