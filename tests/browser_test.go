package tests

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

const firefox = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"

// browser starts Chromium.
func browser(t *testing.T) context.Context {
	t.Helper()
	path := need(t, "chromium", "apt-get install chromium")
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path),
		chromedp.UserDataDir(t.TempDir()),
		chromedp.DisableGPU,
		chromedp.NoSandbox, // root has none, and the pages are our own
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("hide-scrollbars", true),
		chromedp.WSURLReadTimeout(time.Minute),
	)
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatal(err)
	}
	return ctx
}

// device is a tab of a browser with cookies of its own.
type device struct {
	t    *testing.T
	ctx  context.Context
	site string

	mu       sync.Mutex
	problems []string // what the console says
	sent     []string // where forms went
}

func newDevice(t *testing.T, browser context.Context, site string) *device {
	t.Helper()
	ctx, cancel := chromedp.NewContext(browser, chromedp.WithNewBrowserContext())
	t.Cleanup(cancel)
	d := &device{t: t, ctx: ctx, site: site}
	if err := chromedp.Do(ctx); err != nil {
		t.Fatal(err)
	}
	err := chromedp.Listen(ctx, func(event any) {
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			d.problem("exception: " + e.ExceptionDetails.Text)
		case *log.EventEntryAdded:
			if strings.Contains(e.Entry.Text, "Content Security Policy") {
				d.problem(e.Entry.Text)
			}
		case *network.EventRequestWillBeSent:
			if e.Request.Method == http.MethodPost {
				d.mu.Lock()
				defer d.mu.Unlock()
				d.sent = append(d.sent, e.Request.URL)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, p := range d.problems {
			t.Errorf("in the console: %s", p)
		}
	})
	d.size(1280, 800)
	return d
}

func (d *device) problem(text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.problems = append(d.problems, text)
}

// sentTo counts the forms that went to a path.
func (d *device) sentTo(path string) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, to := range d.sent {
		if to == d.site+path {
			n++
		}
	}
	return n
}

// do runs the actions, each of which waits until it can be done.
func (d *device) do(what string, actions ...chromedp.Action[chromedp.Void]) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.ctx, 20*time.Second)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		d.t.Fatalf("%s: %v, at %s", what, err, d.shot("failed"))
	}
}

func (d *device) open(path string) {
	d.t.Helper()
	d.do("open "+path, chromedp.Navigate(d.site+path))
}

func (d *device) fill(field, text string) {
	d.t.Helper()
	field = fmt.Sprintf("#%s", field)
	d.do("fill "+field, chromedp.WaitVisible(chromedp.CSS(field)), chromedp.Clear(chromedp.CSS(field)), chromedp.SendKeys(chromedp.CSS(field), text))
}

// press clicks on the button or link with this text, which screen readers read out.
func (d *device) press(name string) {
	d.t.Helper()
	path := fmt.Sprintf(`//*[self::button or self::a or self::summary][normalize-space(.)=%q]`, name)
	d.do("press "+name, chromedp.WaitVisible(chromedp.Search(path)), chromedp.Click(chromedp.Search(path)))
}

// wait waits for a condition, on this page or one that is to come.
func (d *device) wait(expression string) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.ctx, 20*time.Second)
	defer cancel()
	for {
		// A page that goes takes the poll along, which is an error.
		ok, err := chromedp.Run(ctx, chromedp.Poll[bool](expression, chromedp.WithPollingInterval(20*time.Millisecond)))
		switch {
		case ok:
			return
		case ctx.Err() != nil:
			d.t.Fatalf("waiting for %s: %v, at %s", expression, err, d.shot("failed"))
		}
	}
}

func (d *device) waitPath(path string) {
	d.t.Helper()
	d.wait(fmt.Sprintf("document.readyState === 'complete' && location.pathname === %q", path))
}

func (d *device) waitText(text string) {
	d.t.Helper()
	d.wait(fmt.Sprintf("document.body.innerText.includes(%q)", text))
}

func evaluate[T any](d *device, expression string, options ...chromedp.EvaluateOption) T {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.ctx, 30*time.Second)
	defer cancel()
	got, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression, options...))
	if err != nil {
		d.t.Fatalf("%.80s: %v", expression, err)
	}
	return got
}

func (d *device) userAgent(text string) {
	d.t.Helper()
	if _, err := chromedp.Call(d.ctx, emulation.SetUserAgentOverride, emulation.SetUserAgentOverrideParams{UserAgent: text}); err != nil {
		d.t.Fatal(err)
	}
}

func (d *device) size(width, height int64) {
	d.t.Helper()
	d.do("size", chromedp.EmulateViewport(width, height))
}

func (d *device) theme(name string) {
	d.t.Helper()
	_, err := chromedp.Call(d.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: name}, {Name: "prefers-reduced-motion", Value: "reduce"}}})
	if err != nil {
		d.t.Fatal(err)
	}
}

// shot keeps a picture of the whole page where GORMSESSIONS_SCREENSHOTS says.
func (d *device) shot(name string) string {
	return d.save(d.t.Name()+"-"+name, chromedp.FullScreenshot(100))
}

func (d *device) save(name string, take chromedp.Action[[]byte]) string {
	dir := os.Getenv("GORMSESSIONS_SCREENSHOTS")
	if dir == "" {
		return "(set GORMSESSIONS_SCREENSHOTS to a folder for a picture)"
	}
	picture, err := chromedp.Run(d.ctx, take)
	if err != nil {
		return err.Error()
	}
	file := filepath.Join(dir, name+".png")
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(file, picture, 0o644)); err != nil {
		d.t.Error(err)
	}
	return file
}

func (d *device) signUp() {
	d.t.Helper()
	d.open("/")
	d.press("Create an account")
	d.fill("email", email)
	d.fill("password", password)
	d.press("Create the account")
	d.waitPath("/account")
}

func (d *device) signIn(password string) {
	d.t.Helper()
	d.waitPath("/sign-in")
	d.fill("email", email)
	d.fill("password", password)
	d.press("Sign in")
}

func TestBrowser(t *testing.T) {
	t.Parallel()
	chromium := browser(t)
	site := start(t, "")
	desk, phone := newDevice(t, chromium, site.url), newDevice(t, chromium, site.url)
	phone.userAgent(firefox)

	desk.signUp()
	desk.waitText("No other device is signed in.")

	// The other device appears where the page is open.
	phone.open("/keys")
	phone.signIn(password)
	phone.waitPath("/keys") // the way back
	phone.open("/account")
	desk.waitText("Firefox on Linux")

	// It gets a name.
	desk.press("Rename Firefox on Linux")
	desk.do("rename", chromedp.SendKeys(chromedp.CSS("details[open] input"), "Phone\r"))
	desk.waitText("The device has its new name.")
	desk.waitText("Phone")
	phone.waitText("Phone")

	// And is signed out: its open page goes at once, not when the server looks
	// again by itself, after 10 seconds.
	began := time.Now()
	desk.press("Sign out Phone")
	phone.waitPath("/sign-in")
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the open page went after %v", took)
	}
	desk.waitText("That device is signed out.")
	phone.waitText("that session is over")

	// A device with no page open is refused at its next request.
	phone.signIn(password)
	phone.waitPath("/account")
	phone.open("/static/icon.svg")
	desk.open("/account")
	desk.press("Sign out of all others")
	desk.waitText("All other devices are signed out.")
	phone.open("/account")
	phone.signIn(password)
	phone.waitPath("/account")

	// A new password signs out the others, in the same transaction.
	const changed = "another horse"
	before := site.signIn(t).cookie(t)
	desk.open("/password")
	desk.fill("current", "wrong")
	desk.fill("new", changed)
	desk.press("Change the password")
	desk.waitText("That is not your password.")
	desk.fill("current", password)
	desk.fill("new", changed)
	desk.press("Change the password")
	desk.waitText("Your password is changed")
	desk.waitText("No other device is signed in.")
	phone.waitPath("/sign-in")
	if got := site.curl(t, "/api/me", with(before)...).StatusCode; got != 401 {
		t.Errorf("a session of before: got %d", got)
	}
	phone.signIn(password)
	phone.waitText("The e-mail or the password is wrong.")
	phone.signIn(changed)
	phone.waitPath("/account")

	// A session that expires, with its page open.
	site.exec(t, "UPDATE demo_devices SET expires_at = ? WHERE user_agent = ? AND revoked_at IS NULL", time.Now().UTC().Add(-time.Second), firefox)
	phone.waitPath("/sign-in")

	// A key asks for the password first, when that was a while ago.
	site.exec(t, "UPDATE demo_devices SET authenticated_at = ?", time.Now().UTC().Add(-time.Hour))
	desk.open("/keys")
	desk.press("Make the first key")
	desk.waitPath("/confirm")
	desk.fill("password", changed)
	desk.press("Confirm")
	desk.waitPath("/keys/new")
	desk.fill("name", "Backup")
	desk.do("write", chromedp.Click(chromedp.CSS("input[name=write]")))
	desk.press("Make the key")
	desk.waitText("Copy it now.")
	for _, id := range []string{"curl-me", "curl-name"} {
		line := evaluate[string](desk, "document.getElementById('"+id+"').textContent")
		out, err := exec.CommandContext(t.Context(), "sh", "-c", line+" --silent --show-error --fail").CombinedOutput()
		if err != nil || !json.Valid(out) {
			t.Errorf("%s: got %v\n%s", id, err, out)
		}
	}
	if selected := evaluate[string](desk, "getComputedStyle(document.getElementById('secret')).userSelect"); selected != "all" {
		t.Errorf("without a script the key is selected as %q", selected)
	}
	desk.press("Copy the key")
	desk.wait(`document.getElementById("copied").textContent === "Copied." || String(getSelection()).startsWith("demo_")`)
	desk.press("I have copied it")
	desk.waitText("just now") // last used
	desk.waitText("Rocket")
	desk.press("Revoke Backup")
	desk.waitText("The key is revoked.")

	// Everything at once. The page of a new key answers a form, which must not be
	// sent again.
	phone.signIn(changed)
	phone.waitPath("/account")
	phone.open("/keys/new")
	phone.fill("name", "Phone")
	phone.press("Make the key")
	phone.waitText("Copy it now.")
	desk.open("/account")
	desk.press("Sign out everywhere")
	desk.waitPath("/sign-in")
	desk.waitText("You are signed out.")
	phone.waitPath("/sign-in")
	if got := phone.sentTo("/keys"); got != 1 {
		t.Errorf("the form was sent %d times", got)
	}
}

// TestBrowserCrossSite opens a page of another site, which sends a form here: what
// the browser itself says of where that comes from is what the demo goes by.
func TestBrowserCrossSite(t *testing.T) {
	t.Parallel()
	chromium := browser(t)
	site := start(t, "")
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, `<form method="post" action="%s%s"><input name="email" value="%s"><input name="password" value="%s"><button>Go</button></form>`,
			site.url, r.URL.Path, email, password)
	}))
	defer elsewhere.Close()

	desk := newDevice(t, chromium, site.url)
	desk.signUp()
	for _, path := range []string{"/sign-out", "/sign-in", "/sign-up", "/devices/sign-out-everywhere", "/keys"} {
		desk.do("open", chromedp.Navigate(elsewhere.URL+path))
		desk.press("Go")
		desk.waitText("That came from another site")
	}
	desk.open("/account")
	desk.waitPath("/account")
	if log := site.logged(); strings.Count(log, "refused a request from another site") != 5 || strings.Contains(log, "session revoked") {
		t.Error("something was done")
	}
}

// TestBrowserKeyboard uses no mouse.
func TestBrowserKeyboard(t *testing.T) {
	t.Parallel()
	chromium := browser(t)
	site := start(t, "")
	desk := newDevice(t, chromium, site.url)
	desk.signUp()
	key := func(keys string) { t.Helper(); desk.do("keys", chromedp.KeyEvent(keys)) }

	key("\t")
	desk.wait(`document.activeElement.className === "skip" && document.activeElement.getBoundingClientRect().top >= 0`)
	key("\r")
	desk.wait(`document.activeElement.id === "main"`)
	key("\t")
	desk.wait(`document.activeElement.textContent === "change your password"`)
	key("\t")
	desk.wait(`document.activeElement.tagName === "SUMMARY" && getComputedStyle(document.activeElement).outlineStyle === "solid"`)
	key("\r")
	key("\t")
	desk.wait(`document.activeElement.labels[0].textContent === "New name for Chrome on Linux"`)
	key("My desk\r")
	desk.waitText("The device has its new name.")
	desk.waitText("My desk")
}

// TestBrowserPages looks at every page in both themes, and wide as a desk and narrow
// as a phone: none is wider than the window, and axe finds nothing serious.
func TestBrowserPages(t *testing.T) {
	t.Parallel()
	axe := axeSource(t)
	chromium := browser(t)
	site := start(t, "", "-sample")
	desk := newDevice(t, chromium, site.url)

	visit := func(name string) {
		t.Helper()
		for _, theme := range []string{"light", "dark"} {
			desk.theme(theme)
			for _, width := range []int64{1280, 360} {
				desk.size(width, 800)
				if got := evaluate[int64](desk, "document.documentElement.scrollWidth"); got > width {
					t.Errorf("%s: %d pixels wide in a window of %d", name, got, width)
				}
				desk.shot(fmt.Sprintf("%s-%d-%s", name, width, theme))
				desk.audit(fmt.Sprintf("%s, %d, %s", name, width, theme), axe)
			}
		}
		desk.theme("light")
		desk.size(1280, 800)
	}

	for _, page := range []struct{ name, path string }{
		{"home", "/"}, {"sign-up", "/sign-up"}, {"sign-in", "/sign-in?return_to=/account"}, {"problem-stranger", "/nowhere"},
	} {
		desk.open(page.path)
		visit(page.name)
	}
	desk.open("/sign-in")
	desk.signIn("wrong password")
	desk.waitText("is wrong")
	visit("sign-in-error")

	sample := sampleLogin(t, site)
	desk.open("/sign-in")
	desk.signIn(sample)
	desk.waitPath("/account")
	visit("account")
	desk.size(1000, 640) // docs/demo-light.png and docs/demo-dark.png
	for _, theme := range []string{"light", "dark"} {
		desk.theme(theme)
		desk.save("demo-"+theme, chromedp.CaptureScreenshot())
	}
	desk.theme("light")
	desk.size(1280, 800)
	desk.press("Rename Desk at the library")
	visit("account-rename")
	for _, page := range []struct{ name, path string }{
		{"password", "/password"}, {"confirm", "/confirm"}, {"keys", "/keys"}, {"key-new", "/keys/new"}, {"problem", "/nowhere"}, {"statistics", "/statistics"},
	} {
		desk.open(page.path)
		visit(page.name)
	}
	desk.press("The figures of Sign-ins per day")
	visit("statistics-figures")

	// A name that fits in no header, at the widths between.
	site.exec(t, "UPDATE demo_users SET email = ?", "somebody.with.quite.a.long.name@a-company.example.com")
	desk.open("/account")
	for _, width := range []int64{360, 600, 720, 768, 1024, 1280} {
		desk.size(width, 800)
		if got := evaluate[int64](desk, "document.documentElement.scrollWidth"); got > width {
			t.Errorf("a long name: %d pixels wide in a window of %d", got, width)
		}
		const oneLine = `(a => a(".who") === a(".brand") && a("nav") === a(".brand"))(
			s => (r => Math.round(r.top + r.bottom))(document.querySelector(s).getBoundingClientRect()))`
		if width >= 720 && !evaluate[bool](desk, oneLine) {
			t.Errorf("a long name: the header breaks in a window of %d", width)
		}
		desk.shot(fmt.Sprintf("long-name-%d", width))
	}

	desk.open("/keys/new")
	desk.fill("name", "A program with quite a long name, so that lines must break")
	desk.do("write", chromedp.Click(chromedp.CSS("input[name=write]")))
	desk.press("Make the key")
	desk.waitText("Copy it now.")
	visit("key-created")

	site.exec(t, "DELETE FROM demo_api_keys")
	site.exec(t, "DELETE FROM demo_devices WHERE address NOT IN ('127.0.0.1', '::1')")
	for _, page := range []struct{ name, path string }{{"account-empty", "/account?done=others-out"}, {"keys-empty", "/keys"}, {"statistics-empty", "/statistics"}} {
		desk.open(page.path)
		visit(page.name)
	}
}

// sampleLogin reads the password that the demo prints for its sample account.
func sampleLogin(t *testing.T, d *demo) string {
	t.Helper()
	_, rest, found := strings.Cut(d.logged(), "with the password ")
	if !found {
		t.Fatal("the demo printed no password")
	}
	return strings.Fields(rest)[0]
}

const (
	axeVersion = "axe-core@4.14.1"
	axeDigest  = "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=="
)

// axeSource is axe-core's script. It is fetched once, by npm, and kept among the
// user's caches: 700 kB are too much for the repository.
func axeSource(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	cache = filepath.Join(cache, "gormsessions")
	file := filepath.Join(cache, strings.ReplaceAll(axeVersion, "@", "-")+".tgz")
	if _, err := os.Stat(file); err != nil {
		npm := need(t, "npm", "install Node.js, or run `npm pack "+axeVersion+"` and put the file into "+cache)
		if err := os.MkdirAll(cache, 0o755); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(t.Context(), npm, "pack", "--silent", "--pack-destination", cache, axeVersion).CombinedOutput(); err != nil {
			t.Fatalf("npm pack: %v\n%s", err, out)
		}
	}
	archive, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha512.Sum512(archive); base64.StdEncoding.EncodeToString(sum[:]) != axeDigest {
		t.Fatalf("%s is not what was published: remove it", file)
	}
	return unpack(t, archive, "package/axe.min.js")
}

// audit fails for what axe calls serious or critical.
func (d *device) audit(page, axe string) {
	d.t.Helper()
	evaluate[bool](d, axe+"; true")
	found := evaluate[[]struct {
		ID, Impact, Help string
		Nodes            []struct{ HTML, FailureSummary string }
	}](d, `axe.run({resultTypes: ["violations"]}).then(r => r.violations.map(v => ({ID: v.id, Impact: v.impact, Help: v.help,
		Nodes: v.nodes.map(n => ({HTML: n.html, FailureSummary: n.failureSummary}))})))`, chromedp.EvalAwaitPromise)
	for _, v := range found {
		if v.Impact == "serious" || v.Impact == "critical" {
			d.t.Errorf("%s: %s: %s: %+v", page, v.Impact, v.Help, v.Nodes)
		} else {
			d.t.Logf("%s: %s: %s: %+v", page, v.Impact, v.Help, v.Nodes)
		}
	}
}

// unpack reads one file of a .tgz archive.
func unpack(t *testing.T, archive []byte, name string) string {
	t.Helper()
	zipped, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	for files := tar.NewReader(zipped); ; {
		header, err := files.Next()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if header.Name != name {
			continue
		}
		text, err := io.ReadAll(files)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
}
