package gormsessions_test

import (
	"path/filepath"
	"testing"

	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/sessioncache"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
)

// raceDetector: it allocates, and drops what is pooled.
var raceDetector bool

type cachedUser struct {
	ID   uint
	Name string
}

type cachedSession struct {
	gormsessions.Session[cachedUser, uint]
	Device string
}

func TestCachedAllocations(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector allocates")
	}
	db, err := gorm.Open(sqlite.Open(filepath.Join(t.TempDir(), "test.db")), &gorm.Config{})
	if err != nil {
		t.Fatal(err)
	}
	pool, err := db.DB()
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	cache, err := sessioncache.New(sessioncache.Config{TTL: gormsessions.Never})
	if err != nil {
		t.Fatal(err)
	}
	defer cache.Close()
	sessions := gormsessions.New[cachedSession](gormsessions.Config{Cache: cache})
	if err := db.Use(sessions); err != nil {
		t.Fatal(err)
	}
	user := cachedUser{Name: "ada"}
	if err := db.Create(&user).Error; err != nil {
		t.Fatal(err)
	}
	var s cachedSession
	s.OwnerID = user.ID
	if err := db.Create(&s).Error; err != nil {
		t.Fatal(err)
	}
	token := string(s.Token)
	for name, scopes := range map[string][]gormsessions.Scope{"alone": nil, "with its owner": {gormsessions.WithOwner}} {
		authenticate := func() {
			if _, err := sessions.Authenticate(t.Context(), token, scopes...); err != nil {
				t.Fatal(err)
			}
		}
		authenticate() // its first use is written
		authenticate()
		hits := cache.Stats().Hits
		if n := testing.AllocsPerRun(800, authenticate); n > 1 {
			t.Errorf("%s: a hit costs %v allocations, want 1 at most", name, n)
		}
		if cache.Stats().Hits < hits+800 {
			t.Errorf("%s: %+v", name, cache.Stats())
		}
	}
}
