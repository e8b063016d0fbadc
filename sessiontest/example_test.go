package sessiontest_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/sessionhttp"
	"github.com/gormsessions/gormsessions/sessiontest"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
)

// A test of a handler: somebody is signed in, and eight days later no more.
func ExampleSignIn() {
	testAccount := func(t testing.TB) { // TestAccount(t *testing.T)
		clock := sessiontest.NewClock(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
		db, err := gorm.Open(sqlite.Open("file::memory:"), &gorm.Config{NowFunc: clock.Now})
		if err != nil {
			t.Fatal(err)
		}
		pool, _ := db.DB()
		pool.SetMaxOpenConns(1) // each connection would have a memory of its own
		guests := gormsessions.New[Guest](gormsessions.Config{})
		if err := db.Use(guests); err != nil {
			t.Fatal(err)
		}
		web, err := sessionhttp.New(guests, sessionhttp.Config{Now: clock.Now})
		if err != nil {
			t.Fatal(err)
		}
		account := web.Require(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			guest, _ := sessionhttp.FromContext[Guest](r.Context())
			fmt.Fprint(w, "hello, ", guest.Name)
		}))

		req := httptest.NewRequest("GET", "/account", nil)
		sessiontest.SignIn(t, guests, req, &Guest{Name: "Ada"})
		for range 2 {
			rec := httptest.NewRecorder()
			account.ServeHTTP(rec, req)
			fmt.Println(rec.Code, rec.Body)
			clock.Advance(8 * 24 * time.Hour)
		}
	}
	testAccount(&testing.T{})
	// Output:
	// 200 hello, Ada
	// 401 Unauthorized
}
