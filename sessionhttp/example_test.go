package sessionhttp_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/sessionhttp"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

// A site where people sign in.
func Example() {
	db := openMemory()
	sessions := gormsessions.New[UserSession](gormsessions.Config{})
	panicIf(db.Use(sessions))
	ada := User{Email: "ada@example.com"}
	panicIf(db.Create(&ada).Error)

	web, err := sessionhttp.New(sessions, sessionhttp.Config{
		SignInURL: "/sign-in",
		Scopes:    []gormsessions.Scope{gormsessions.WithOwner},
	})
	panicIf(err)

	mux := http.NewServeMux()
	mux.HandleFunc("POST /sign-in", func(w http.ResponseWriter, r *http.Request) {
		// Check the password here, then
		s := UserSession{Device: r.UserAgent()}
		s.OwnerID = ada.ID
		if err := web.SignIn(w, r, &s); err != nil {
			http.Error(w, "try again later", http.StatusServiceUnavailable)
			return
		}
		http.Redirect(w, r, sessionhttp.ReturnTo(r), http.StatusSeeOther)
	})
	mux.HandleFunc("POST /sign-out", func(w http.ResponseWriter, r *http.Request) {
		if err := web.SignOut(w, r); err != nil { // still signed in: say so
			http.Error(w, "try again later", http.StatusServiceUnavailable)
			return
		}
		http.Redirect(w, r, "/", http.StatusSeeOther)
	})
	mux.Handle("GET /account", web.Require(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s, _ := sessionhttp.FromContext[UserSession](r.Context()) // behind Require there is one
		fmt.Fprintln(w, "hello,", s.Owner.Email)
	})))
	site := http.NewCrossOriginProtection().Handler(web.Handler(mux))

	browser := newBrowser(site)
	browser.open("GET", "/account")
	browser.open("POST", "/sign-in?return_to=%2Faccount")
	browser.open("GET", "/account")
	browser.open("POST", "/sign-out")
	browser.open("GET", "/account")
	// Output:
	// GET /account: 303 to /sign-in?return_to=%2Faccount
	// POST /sign-in?return_to=%2Faccount: 303 to /account
	// GET /account: 200 hello, ada@example.com
	// POST /sign-out: 303 to /
	// GET /account: 303 to /sign-in?return_to=%2Faccount
}

// An API, for keys that may do some things.
func ExampleBearer() {
	db := openMemory()
	keys := gormsessions.New[APIKey](gormsessions.Config{IdleTimeout: gormsessions.Never, Prefix: "acme"})
	panicIf(db.Use(keys))
	panicIf(db.Create(&User{ID: 1}).Error)
	key := APIKey{Abilities: gormsessions.Abilities{"posts:read"}}
	key.OwnerID = 1
	panicIf(db.Create(&key).Error)

	api, err := sessionhttp.New(keys, sessionhttp.Config{
		Sources: []sessionhttp.Source{sessionhttp.Bearer(), sessionhttp.Header("X-Api-Key")},
		Realm:   "acme",
	})
	panicIf(err)
	posts := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "posts") })
	mux := http.NewServeMux()
	mux.Handle("GET /posts", api.RequireAbility("posts:read")(posts))
	mux.Handle("POST /posts", api.RequireAbility("posts:write")(posts))

	for _, method := range []string{"GET", "POST"} {
		r := httptest.NewRequest(method, "/posts", nil)
		r.Header.Set("Authorization", "Bearer "+string(key.Token))
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		fmt.Printf("%s: %d %s\n", method, w.Code, strings.TrimSpace(w.Body.String()))
		fmt.Println(w.Header().Get("WWW-Authenticate"))
	}
	// Output:
	// GET: 200 posts
	//
	// POST: 403 Forbidden
	// Bearer realm="acme", error="insufficient_scope", scope="posts:write"
}

// One route for people in a browser and for programs with a key.
func ExampleAny() {
	db := openMemory()
	sessions := gormsessions.New[UserSession](gormsessions.Config{})
	panicIf(db.Use(sessions))
	keys := gormsessions.New[APIKey](gormsessions.Config{})
	panicIf(db.Use(keys))

	web, err := sessionhttp.New(sessions, sessionhttp.Config{SignInURL: "/sign-in"})
	panicIf(err)
	api, err := sessionhttp.New(keys, sessionhttp.Config{Sources: []sessionhttp.Source{sessionhttp.Bearer()}})
	panicIf(err)
	either, err := sessionhttp.Any(web, api)
	panicIf(err)

	posts := either.Require(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if key, ok := sessionhttp.FromContext[APIKey](r.Context()); ok {
			fmt.Fprintln(w, "a key of user", key.OwnerID)
			return
		}
		s, _ := sessionhttp.FromContext[UserSession](r.Context())
		fmt.Fprintln(w, "user", s.OwnerID, "with", s.Device)
	}))

	panicIf(db.Create(&User{ID: 1}).Error)
	key := APIKey{}
	key.OwnerID = 1
	panicIf(db.Create(&key).Error)
	r := httptest.NewRequest("GET", "/posts", nil)
	r.Header.Set("Authorization", "Bearer "+string(key.Token))
	w := httptest.NewRecorder()
	posts.ServeHTTP(w, r)
	fmt.Print(w.Body)
	// Output: a key of user 1
}

// In a middleware of another framework: Check for the session, Refuse for the
// answer where there is none, NewContext for the handlers. Put Handler around the
// whole where sessions are in a cookie, which it renews.
func ExampleWeb_Check() {
	db := openMemory()
	sessions := gormsessions.New[UserSession](gormsessions.Config{})
	panicIf(db.Use(sessions))
	web, err := sessionhttp.New(sessions, sessionhttp.Config{})
	panicIf(err)

	middleware := func(w http.ResponseWriter, r *http.Request, next func(*http.Request)) {
		s, err := web.Check(r)
		if err != nil {
			web.Refuse(w, r, err) // 401, 400 or, where the database failed, 503
			return
		}
		next(r.WithContext(sessionhttp.NewContext(r.Context(), s)))
	}

	r, w := httptest.NewRequest("GET", "/", nil), httptest.NewRecorder()
	_, err = web.Check(r)
	fmt.Println(errors.Is(err, gormsessions.ErrNoSession))
	middleware(w, r, func(*http.Request) { fmt.Println("not reached") })
	fmt.Println(w.Code)
	// Output:
	// true
	// 401
}

// browser keeps the cookie, and says what it gets.
type browser struct {
	site   http.Handler
	cookie string
}

func newBrowser(site http.Handler) *browser { return &browser{site: site} }

func (b *browser) open(method, path string) {
	r := httptest.NewRequest(method, path, nil)
	r.Header.Set("Accept", "text/html")
	if b.cookie != "" {
		r.Header.Set("Cookie", b.cookie)
	}
	rec := httptest.NewRecorder()
	b.site.ServeHTTP(rec, r)
	res := rec.Result()
	for _, c := range res.Cookies() {
		b.cookie = ""
		if c.MaxAge >= 0 {
			b.cookie = c.Name + "=" + c.Value
		}
	}
	if to := res.Header.Get("Location"); to != "" {
		fmt.Printf("%s %s: %d to %s\n", method, path, res.StatusCode, to)
		return
	}
	text, _ := io.ReadAll(res.Body)
	fmt.Printf("%s %s: %d %s\n", method, path, res.StatusCode, strings.TrimSpace(string(text)))
}

func openMemory() *gorm.DB {
	db, err := gorm.Open(sqlite.Open("file::memory:?_foreign_keys=on"), &gorm.Config{Logger: logger.Discard})
	panicIf(err)
	pool, err := db.DB()
	panicIf(err)
	pool.SetMaxOpenConns(1)
	panicIf(db.AutoMigrate(&User{}))
	return db
}

func panicIf(err error) {
	if err != nil {
		panic(err)
	}
}
