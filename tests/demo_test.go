package tests

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	_ "github.com/glebarez/sqlite" // another driver than the demo's, to look into its file
)

// need skips a test whose program is not there, and fails it in CI.
func need(t *testing.T, program, get string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err == nil {
		return path
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is missing: %s", program, get)
	}
	t.Skipf("%s is missing: %s", program, get)
	return ""
}

// scratch is a folder for what all tests share.
var scratch string

func TestMain(m *testing.M) {
	var err error
	if scratch, err = os.MkdirTemp("", "gormsessions-tests"); err != nil {
		panic(err)
	}
	code := m.Run()
	_ = os.RemoveAll(scratch)
	os.Exit(code)
}

var buildDemo = sync.OnceValues(func() (string, error) {
	binary := filepath.Join(scratch, "demo")
	build := exec.Command("go", "build", "-o", binary, "./examples/demo")
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return binary, nil
})

// demo is a running examples/demo, with a database of its own.
type demo struct {
	url, file string
	process   *os.Process
	exit      chan error

	mu  sync.Mutex
	log bytes.Buffer
}

func (d *demo) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.log.Write(p)
}

func (d *demo) logged() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.log.String()
}

// start runs the demo on a free port. The settings are the query of its database's
// file, or empty for the demo's own.
func start(t *testing.T, settings string, args ...string) *demo {
	t.Helper()
	binary, err := buildDemo()
	if err != nil {
		t.Fatal(err)
	}
	d := &demo{file: filepath.Join(t.TempDir(), "demo.db"), exit: make(chan error, 1)}
	dsn := d.file
	if settings != "" {
		dsn = "file:" + d.file + "?" + settings
	}
	command := exec.Command(binary, append([]string{"-addr", "localhost:0", "-dsn", dsn}, args...)...)
	out, in := io.Pipe()
	command.Stderr = io.MultiWriter(d, in)
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	d.process = command.Process
	go func() {
		d.exit <- command.Wait()
		_ = in.Close()
	}()
	t.Cleanup(func() {
		d.stop(t, syscall.SIGKILL)
		if t.Failed() {
			t.Logf("the demo's log:\n%s", d.logged())
		}
	})

	urls := make(chan string, 1)
	go func() {
		listening := regexp.MustCompile(`msg=listening url=(\S+)`)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if found := listening.FindStringSubmatch(lines.Text()); found != nil {
				urls <- found[1]
			}
		}
	}()
	select {
	case d.url = <-urls:
	case err := <-d.exit:
		d.exit <- err
		t.Fatalf("the demo ended: %v", err)
	case <-time.After(30 * time.Second):
		t.Fatal("the demo does not listen")
	}
	return d
}

// stop ends the demo, and returns how it ended.
func (d *demo) stop(t *testing.T, signal os.Signal) error {
	t.Helper()
	_ = d.process.Signal(signal)
	select {
	case err := <-d.exit:
		d.exit <- err
		return err
	case <-time.After(20 * time.Second):
		_ = d.process.Kill()
		return fmt.Errorf("%v did not end it", signal)
	}
}

// database opens the demo's file beside it.
func (d *demo) database(t *testing.T) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", d.file+"?_pragma=busy_timeout(5000)")
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func (d *demo) exec(t *testing.T, query string, args ...any) {
	t.Helper()
	if _, err := d.database(t).Exec(query, args...); err != nil {
		t.Fatal(err)
	}
}

// answer is what curl got.
type answer struct {
	*http.Response
	body string
}

// curl runs it, as the README's readers do, and reads what it prints.
func (d *demo) curl(t *testing.T, path string, args ...string) answer {
	t.Helper()
	need(t, "curl", "apt-get install curl")
	args = append([]string{"--silent", "--show-error", "--include", "--raw", "--max-time", "30", d.url + path}, args...)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "curl", args...).Output()
	if err != nil {
		t.Fatalf("curl %q: %v", args, err)
	}
	res, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(out)), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{res, string(body)}
}

func (a answer) cookie(t *testing.T) *http.Cookie {
	t.Helper()
	for _, c := range a.Cookies() {
		if c.Name == "__Host-session" {
			return c
		}
	}
	t.Fatalf("no cookie in %d %v", a.StatusCode, a.Header)
	return nil
}

func with(c *http.Cookie) []string { return []string{"--header", "Cookie: " + c.Name + "=" + c.Value} }

func form(fields ...string) (args []string) {
	for _, f := range fields {
		args = append(args, "--data-urlencode", f)
	}
	return args
}

const (
	email    = "ada@example.com"
	password = "correct horse battery"
)

func (d *demo) signUp(t *testing.T) *http.Cookie {
	t.Helper()
	return d.curl(t, "/sign-up", form("email="+email, "password="+password)...).cookie(t)
}

func (d *demo) signIn(t *testing.T, more ...string) answer {
	t.Helper()
	return d.curl(t, "/sign-in", append(form("email="+email, "password="+password), more...)...)
}

// makeKey makes an API key through the pages.
func (d *demo) makeKey(t *testing.T, session *http.Cookie, more ...string) string {
	t.Helper()
	made := d.curl(t, "/keys", slices.Concat(with(session), form("name=Backup", "days=30"), form(more...))...)
	key := regexp.MustCompile(`demo_[0-9A-Za-z]{40,}`).FindString(made.body)
	if made.StatusCode != http.StatusOK || key == "" {
		t.Fatalf("POST /keys: got %d %s", made.StatusCode, made.body)
	}
	return key
}

func TestDemoR33Cookie(t *testing.T) {
	t.Parallel()
	d := start(t, "")
	d.signUp(t)
	signedIn := d.signIn(t)
	c := signedIn.cookie(t)
	if c.Path != "/" || !c.Secure || !c.HttpOnly || c.SameSite != http.SameSiteLaxMode || c.Domain != "" || c.MaxAge != 7*24*60*60 {
		t.Errorf("got %s", signedIn.Header.Get("Set-Cookie"))
	}
	if signedIn.StatusCode != http.StatusSeeOther || signedIn.Header.Get("Location") != "/" {
		t.Errorf("got %d to %q", signedIn.StatusCode, signedIn.Header.Get("Location"))
	}
	if strings.Contains(d.logged(), c.Value) {
		t.Error("the log holds a token")
	}
}

func TestDemoR34SignInIsNew(t *testing.T) {
	t.Parallel()
	d := start(t, "")
	first := d.signUp(t)
	second := d.signIn(t, with(first)...).cookie(t)
	if second.Value == first.Value {
		t.Error("the same token")
	}
	if got := d.curl(t, "/api/me", with(first)...).StatusCode; got != http.StatusUnauthorized {
		t.Errorf("the one before: got %d", got)
	}
	if got := d.curl(t, "/api/me", with(second)...); got.StatusCode != http.StatusOK || !strings.Contains(got.body, email) {
		t.Errorf("the new one: got %d %s", got.StatusCode, got.body)
	}
}

func TestDemoR35SignOut(t *testing.T) {
	t.Parallel()
	d := start(t, "")
	session := d.signUp(t)
	out := d.curl(t, "/sign-out", append(with(session), "--request", "POST")...)
	c := out.cookie(t)
	if out.StatusCode != http.StatusSeeOther || c.MaxAge >= 0 || c.Value != "" || !c.Secure || !c.HttpOnly || c.Path != "/" || c.SameSite != http.SameSiteLaxMode {
		t.Errorf("got %d %s", out.StatusCode, out.Header.Get("Set-Cookie"))
	}
	dead := d.curl(t, "/account", append(with(session), "--header", "Accept: text/html")...)
	if dead.StatusCode != http.StatusSeeOther || dead.Header.Get("Location") != "/sign-in?return_to=%2Faccount" || dead.cookie(t).MaxAge >= 0 {
		t.Errorf("afterwards: got %d %v", dead.StatusCode, dead.Header)
	}
}

func TestDemoR36NoStore(t *testing.T) {
	t.Parallel()
	d := start(t, "")
	session := d.signUp(t)
	for _, a := range []answer{
		d.curl(t, "/account", with(session)...),
		d.curl(t, "/account"),
		d.curl(t, "/"),
		d.curl(t, "/api/me", with(session)...),
		d.signIn(t),
		d.curl(t, "/sign-out", "--request", "POST"),
	} {
		if a.Header.Get("Cache-Control") != "no-store" || !strings.Contains(strings.Join(a.Header["Vary"], ","), "Cookie") {
			t.Errorf("got %d, Cache-Control %q, Vary %q", a.StatusCode, a.Header.Get("Cache-Control"), a.Header["Vary"])
		}
	}
	if got := d.curl(t, "/static/style.css").Header.Get("Cache-Control"); !strings.HasPrefix(got, "public") {
		t.Errorf("the style sheet, which is nobody's: got %q", got)
	}
}

func TestDemoR37OneCredential(t *testing.T) {
	t.Parallel()
	d := start(t, "")
	session := d.signUp(t)
	other := d.signIn(t).cookie(t)
	key := d.makeKey(t, session)
	for _, c := range []struct {
		name, path string
		args       []string
		want       int
	}{
		{"token in the URL", "/api/me?token=" + session.Value + "&access_token=" + key, nil, 401},
		{"token as a form", "/api/me", []string{"--get", "--data", "access_token=" + key}, 401},
		{"cookie", "/api/me", with(session), 200},
		{"key", "/api/me", []string{"--header", "Authorization: Bearer " + key}, 200},
		{"cookie and key", "/api/me", append(with(session), "--header", "Authorization: Bearer "+key), 400},
		{"two cookies", "/api/me", []string{"--header", "Cookie: __Host-session=" + session.Value + "; __Host-session=" + other.Value}, 400},
		{"key in the cookie", "/api/me", with(&http.Cookie{Name: session.Name, Value: key}), 401},
		{"session as a key", "/api/me", []string{"--header", "Authorization: Bearer " + session.Value}, 401},
	} {
		if got := d.curl(t, c.path, c.args...); got.StatusCode != c.want {
			t.Errorf("%s: got %d, want %d", c.name, got.StatusCode, c.want)
		}
	}
}

func TestDemoR38Challenges(t *testing.T) {
	t.Parallel()
	d := start(t, "")
	session := d.signUp(t)
	revoked := d.makeKey(t, session)
	d.exec(t, "UPDATE demo_api_keys SET revoked_at = ?", time.Now().UTC())
	expired := d.makeKey(t, session)
	d.exec(t, "UPDATE demo_api_keys SET expires_at = ? WHERE revoked_at IS NULL", time.Now().UTC().Add(-time.Minute))
	reader := d.makeKey(t, session)

	const invalid = `Bearer realm="demo", error="invalid_token"`
	for _, c := range []struct {
		name, key string
		args      []string
		status    int
		want      string
	}{
		{"none", "", nil, 401, `Bearer realm="demo"`},
		{"unknown", "demo_" + strings.Repeat("x", 49), nil, 401, invalid},
		{"revoked", revoked, nil, 401, invalid},
		{"expired", expired, nil, 401, invalid},
		{"malformed", "a b", nil, 400, `Bearer realm="demo", error="invalid_request"`},
		{"may not", reader, []string{"--request", "PUT", "--data", `{"name": "x"}`}, 403, `Bearer realm="demo", error="insufficient_scope", scope="project:write"`},
	} {
		path := "/api/project"
		if c.args != nil {
			path += "/name"
		}
		if c.key != "" {
			c.args = append(c.args, "--header", "Authorization: Bearer "+c.key)
		}
		if got := d.curl(t, path, c.args...); got.StatusCode != c.status || got.Header.Get("WWW-Authenticate") != c.want {
			t.Errorf("%s: got %d %s, want %d %s", c.name, got.StatusCode, got.Header["Www-Authenticate"], c.status, c.want)
		}
	}
	writer := d.makeKey(t, session, "write=yes")
	renamed := d.curl(t, "/api/project/name", "--request", "PUT", "--data", `{"name": "Rocket"}`, "--header", "Authorization: Bearer "+writer)
	if page := d.curl(t, "/keys", with(session)...); renamed.StatusCode != 200 || !strings.Contains(page.body, "Rocket") {
		t.Errorf("may: got %d %s", renamed.StatusCode, renamed.body)
	}
}

// TestDemoR39DatabaseDown takes the database away: another process holds its lock,
// in a journal mode in which readers wait for that too.
func TestDemoR39DatabaseDown(t *testing.T) {
	t.Parallel()
	d := start(t, "_foreign_keys=on&_journal_mode=DELETE&_busy_timeout=100&_txlock=immediate")
	session := d.signUp(t)
	key := d.makeKey(t, session)

	lock, err := d.database(t).Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if _, err := lock.ExecContext(t.Context(), "BEGIN EXCLUSIVE"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, path string
		args       []string
	}{
		{"page", "/account", append(with(session), "--header", "Accept: text/html")},
		{"API by cookie", "/api/me", with(session)},
		{"API by key", "/api/me", []string{"--header", "Authorization: Bearer " + key}},
		{"sign out", "/sign-out", append(with(session), "--request", "POST")},
		{"sign in", "/sign-in", form("email="+email, "password="+password)},
		{"live", "/live", with(session)},
	} {
		got := d.curl(t, c.path, c.args...)
		if got.StatusCode != http.StatusServiceUnavailable || len(got.Cookies()) != 0 {
			t.Errorf("%s: got %d, cookies %v", c.name, got.StatusCode, got.Cookies())
		}
		if strings.Contains(got.body, "locked") || strings.Contains(got.body, "SQL") {
			t.Errorf("%s: the answer tells of the database:\n%s", c.name, got.body)
		}
	}
	if _, err := lock.ExecContext(t.Context(), "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	if got := d.curl(t, "/api/me", with(session)...).StatusCode; got != http.StatusOK {
		t.Errorf("when it is back: got %d", got)
	}
	if log := d.logged(); !strings.Contains(log, "level=ERROR") || strings.Contains(log, session.Value) || strings.Contains(log, key) {
		t.Error("the log does not tell of it, or holds a token")
	}
}

// TestDemoR40CrossSite is the part that a running server shows; the matrix is in
// examples/demo.
func TestDemoR40CrossSite(t *testing.T) {
	t.Parallel()
	d := start(t, "")
	session := d.signUp(t)
	for _, header := range []string{"Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site", "Origin: https://evil.example", "Origin: null"} {
		in := d.signIn(t, "--header", header)
		out := d.curl(t, "/sign-out", append(with(session), "--request", "POST", "--header", header)...)
		for _, a := range []answer{in, out} {
			if a.StatusCode != http.StatusForbidden || len(a.Cookies()) != 0 {
				t.Errorf("%s: got %d %v", header, a.StatusCode, a.Cookies())
			}
		}
	}
	if got := d.curl(t, "/api/me", with(session)...).StatusCode; got != http.StatusOK {
		t.Errorf("still signed in: got %d", got)
	}
}

// TestDemoStops ends it, with a stream open, as a shell and a supervisor do.
func TestDemoStops(t *testing.T) {
	t.Parallel()
	for _, signal := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		t.Run(signal.String(), func(t *testing.T) {
			t.Parallel()
			d := start(t, "")
			request, err := http.NewRequestWithContext(t.Context(), "GET", d.url+"/live", nil)
			if err != nil {
				t.Fatal(err)
			}
			request.AddCookie(d.signUp(t))
			stream, err := http.DefaultClient.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			defer stream.Body.Close()
			if line, err := bufio.NewReader(stream.Body).ReadString('\n'); err != nil || stream.StatusCode != http.StatusOK {
				t.Fatalf("got %d %q, %v", stream.StatusCode, line, err)
			}
			began := time.Now()
			if err := d.stop(t, signal); err != nil {
				t.Errorf("got %v", err)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}
