package gormsessions_test

import (
	"context"
	"database/sql/driver"
	"fmt"
	"path/filepath"
	"reflect"
	"runtime"
	"testing"

	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/internal/conformance"
	"github.com/gormsessions/gormsessions/sessioncache"
	"gorm.io/datatypes"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/clause"
	"gorm.io/gorm/logger"
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

// keptUser has columns by which its rows can be written that are not its key.
type keptUser struct {
	ID        uint
	Name      string
	Number    uint    `gorm:"uniqueIndex"`
	Email     *string `gorm:"uniqueIndex"`
	DeletedAt gorm.DeletedAt
}

type keptSession struct {
	gormsessions.Session[keptUser, uint]
	Prefs  datatypes.JSONType[map[string]any]
	Panics bool `gorm:"-"`
}

func (s *keptSession) AfterFind(tx *gorm.DB) error {
	if found, ok := tx.Statement.Context.Value(foundKey{}).(func(*keptSession)); ok {
		found(s)
	}
	return nil
}

// foundKey is what AfterFind does, in the context.
type foundKey struct{}

func (s *keptSession) AfterCreate(*gorm.DB) error {
	if s.Panics {
		panic("create")
	}
	return nil
}

// keptNumber is another model of the owners' table, with another key.
type keptNumber struct {
	Number uint `gorm:"primaryKey"`
	Name   string
}

func (keptNumber) TableName() string { return "kept_users" }

// halved is a number that the database is given the half of.
type halved uint

func (h halved) Value() (driver.Value, error) { return int64(h / 2), nil }

// orNamed is a condition that GORM knows nothing of.
type orNamed string

func (n orNamed) Build(b clause.Builder) {
	_, _ = b.WriteString("1 = 0 OR name = ")
	b.AddVar(b, string(n))
}

// kept is a database whose sessions are cached.
type kept struct {
	*testing.T
	db       *gorm.DB
	cache    *sessioncache.Cache
	sessions *gormsessions.Plugin[keptSession]
	users    uint
}

func startKept(t *testing.T, config gormsessions.Config, options *gorm.Config) *kept {
	t.Helper()
	options.Logger = logger.Discard
	db, err := gorm.Open(sqlite.Open(filepath.Join(t.TempDir(), "test.db")+"?_foreign_keys=on&_journal_mode=WAL&_busy_timeout=5000&_txlock=immediate"), options)
	if err != nil {
		t.Fatal(err)
	}
	pool, err := db.DB()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pool.Close() })
	cache, err := sessioncache.New(sessioncache.Config{TTL: gormsessions.Never})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cache.Close() })
	config.Cache = cache
	k := &kept{T: t, db: db, cache: cache, sessions: gormsessions.New[keptSession](config)}
	k.must(db.Use(k.sessions))
	return k
}

func (k *kept) must(err error) {
	k.Helper()
	if err != nil {
		k.Fatal(err)
	}
}

// sign is a session of a new user.
func (k *kept) sign() *keptSession {
	k.Helper()
	k.users++
	email := fmt.Sprint("user", k.users)
	user := keptUser{ID: k.users, Name: "ada", Number: 1000 + k.users, Email: &email}
	k.must(k.db.Create(&user).Error)
	s := &keptSession{}
	s.OwnerID = user.ID
	k.must(k.sessions.Create(k.Context(), s))
	return s
}

// warm makes the cache hold a session with its owner.
func (k *kept) warm(s *keptSession) *keptSession {
	k.Helper()
	for range 1000 {
		hits := k.cache.Stats().Hits
		got, err := k.sessions.Authenticate(k.Context(), string(s.Token), gormsessions.WithOwner)
		k.must(err)
		if k.cache.Stats().Hits > hits {
			return got
		}
		runtime.GC()
	}
	k.Fatalf("the cache does not keep the session: %+v", k.cache.Stats())
	return nil
}

// same asserts that the cache says what the database does.
func (k *kept) same(what string, s *keptSession) {
	k.Helper()
	built := func(db *gorm.DB) *gorm.DB { return db }
	got, err := k.sessions.Lookup(k.Context(), string(s.Token), gormsessions.WithOwner)
	stored, wanted := k.sessions.Lookup(k.Context(), string(s.Token), gormsessions.WithOwner, built)
	if err != wanted || !reflect.DeepEqual(got, stored) {
		k.Errorf("%s: with the cache %v, %+v; the database has %v, %+v", what, err, got, wanted, stored)
	}
}

func TestCachedOddWrites(t *testing.T) {
	k := startKept(t, gormsessions.Config{}, &gorm.Config{})
	users := func() *gorm.DB { return k.db.Model(&keptUser{}) }
	for name, write := range map[string]func(s *keptSession) error{
		"Raw and Take": func(s *keptSession) error {
			return k.db.Raw("UPDATE kept_users SET name = 'x' RETURNING *").Take(&keptUser{}).Error
		},
		"Raw and Find": func(s *keptSession) error {
			return k.db.Raw("UPDATE kept_users SET name = 'x' RETURNING *").Find(&[]keptUser{}).Error
		},
		"Raw and Pluck": func(s *keptSession) error {
			return k.db.Raw("UPDATE kept_users SET name = 'x' RETURNING id").Pluck("id", &[]uint{}).Error
		},
		"Raw after a comment": func(s *keptSession) error {
			return k.db.Raw("-- what this is for\nUPDATE kept_users SET name = 'x' RETURNING id").Scan(&[]uint{}).Error
		},
		"NOT": func(s *keptSession) error { return users().Where("NOT kept_users.id = ?", 0).Update("name", "x").Error },
		"OR": func(s *keptSession) error {
			return users().Where("kept_users.name <> '' OR kept_users.id = ?", 0).Update("name", "x").Error
		},
		"OR on a line": func(s *keptSession) error {
			return users().Where("id = ?", 0).Where("name = ''\nOR\nname = ?", "ada").Update("name", "x").Error
		},
		"NOT, and OR on a line": func(s *keptSession) error {
			return users().Where("id = ?", 0).Not("name = ''\nOR\nname = ?", "ada").Update("name", "x").Error
		},
		"AND of one, and OR on a line": func(s *keptSession) error {
			one := clause.AndConditions{Exprs: []clause.Expression{clause.Expr{SQL: "name = ''\nOR\nname = ?", Vars: []any{"ada"}}}}
			return users().Where("id = ?", 0).Where(one).Update("name", "x").Error
		},
		"an expression of the application's": func(s *keptSession) error {
			return users().Where("id = ?", 0).Where(orNamed("ada")).Update("name", "x").Error
		},
		"another table's id": func(s *keptSession) error {
			return users().Clauses(clause.From{Tables: []clause.Table{{Name: "others"}}}).
				Where("others.id = ?", 7).Where("others.user_id = kept_users.id").Update("name", "x").Error
		},
		"another table's id, by a clause": func(s *keptSession) error {
			return users().Clauses(clause.From{Tables: []clause.Table{{Name: "others"}}}).
				Where(clause.Eq{Column: clause.Column{Table: "others", Name: "id"}, Value: 7}).Update("name", "x").Error
		},
		"another model's key": func(s *keptSession) error {
			return k.db.Model(&keptNumber{Number: 1000 + s.OwnerID}).Update("name", "x").Error
		},
		"another model's key, Delete": func(s *keptSession) error {
			return k.db.Unscoped().Delete(&keptNumber{}, 1000+s.OwnerID).Error
		},
		"a key of a type of its own": func(s *keptSession) error {
			return users().Where("id = ?", halved(2*s.OwnerID)).Update("name", "x").Error
		},
		"a table as a parameter": func(s *keptSession) error {
			return k.db.Table("?", clause.Table{Name: "kept_users"}).Where("1 = 1").Update("name", "x").Error
		},
		"a table in a clause": func(s *keptSession) error {
			return k.db.Table("others").Clauses(clause.Update{Table: clause.Table{Name: "kept_users"}}).Where("1 = 1").Update("name", "x").Error
		},
		"an upsert by another column": func(s *keptSession) error {
			email := fmt.Sprint("user", s.OwnerID)
			return k.db.Clauses(clause.OnConflict{Columns: []clause.Column{{Name: "email"}}, DoUpdates: clause.AssignmentColumns([]string{"name"})}).
				Create(&keptUser{ID: 5000 + s.OwnerID, Name: "x", Number: 5000 + s.OwnerID, Email: &email}).Error
		},
		"an upsert with conditions": func(s *keptSession) error {
			return k.db.Where("id = ?", 0).Clauses(clause.OnConflict{UpdateAll: true}).
				Create(&keptUser{ID: s.OwnerID, Name: "x", Number: 5000 + s.OwnerID}).Error
		},
		"INSERT OR REPLACE": func(s *keptSession) error {
			email := fmt.Sprint("user", s.OwnerID)
			return k.db.Clauses(clause.Insert{Modifier: "OR REPLACE"}).
				Create(&keptUser{ID: 5000 + s.OwnerID, Name: "x", Number: 5000 + s.OwnerID, Email: &email}).Error
		},
	} {
		s := k.sign()
		k.must(k.db.Exec("DROP TABLE IF EXISTS others").Error)
		k.must(k.db.Exec("CREATE TABLE others (id integer, user_id integer)").Error)
		k.must(k.db.Exec("INSERT INTO others VALUES (7, ?)", s.OwnerID).Error)
		before := k.warm(s)
		if err := write(s); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		k.same(name, s)
		if now, err := k.sessions.Lookup(t.Context(), string(s.Token), gormsessions.WithOwner, func(db *gorm.DB) *gorm.DB { return db }); err == nil && reflect.DeepEqual(now, before) {
			t.Errorf("%s changed nothing", name)
		}
	}
}

func TestCachedRows(t *testing.T) {
	k := startKept(t, gormsessions.Config{}, &gorm.Config{})
	s := k.sign()
	k.warm(s)
	if rows, err := k.db.Raw("UPDATE kept_users SET no_column = 1 RETURNING id").Rows(); err == nil {
		t.Error("a column that is not there", rows.Close())
	}
	for range 2 { // the rows are garbage before the transaction has ended
		k.warm(s)
		tx := k.db.Begin()
		k.must(tx.Raw("UPDATE kept_users SET name = name || 'x' RETURNING id").Scan(&[]uint{}).Error)
		for range 10 {
			runtime.GC()
			_, err := k.sessions.Authenticate(t.Context(), string(s.Token), gormsessions.WithOwner)
			k.must(err)
		}
		k.must(tx.Commit().Error)
		k.same("committed later", s)
	}
}

func TestCachedRow(t *testing.T) {
	if !*gormsessions.RowsKnown {
		t.Error("the rows of a sql.Row are not found")
	}
	for _, known := range []bool{true, false} { // a new database/sql may have another name for them
		k := startKept(t, gormsessions.Config{}, &gorm.Config{})
		s := k.sign()
		k.warm(s)
		func() {
			defer func(was bool) { *gormsessions.RowsKnown = was }(*gormsessions.RowsKnown)
			*gormsessions.RowsKnown = known
			var name string
			k.must(k.db.Raw("UPDATE kept_users SET name = 'x' RETURNING name").Row().Scan(&name))
		}()
		for range 5 {
			runtime.GC()
			k.same("written by a row", s)
		}
		if known {
			k.warm(s) // again, once they are closed
		} else if hits := k.cache.Stats().Hits; hits > 1 {
			t.Errorf("%d hits: nobody knows when its transaction has ended", hits)
		}
	}
}

// What a statement does not change stays served.
func TestCachedStays(t *testing.T) {
	k := startKept(t, gormsessions.Config{MaxPerOwner: 2}, &gorm.Config{})
	s, id := k.sign(), uint(0)
	ctx := t.Context()
	for name, run := range map[string]func() error{
		"Create":             func() error { k.sign(); return nil },
		"db.Create":          func() error { v := &keptSession{}; v.OwnerID = id; return k.db.Create(v).Error },
		"Authenticate":       func() error { _, err := k.sessions.Authenticate(ctx, string(k.sign().Token)); return err },
		"Revoke":             func() error { _, err := k.sessions.Revoke(ctx, "", gormsessions.ForUser(id)); return err },
		"Rotate":             func() error { return k.sessions.Rotate(ctx, k.sign()) },
		"Prune":              func() error { _, err := k.sessions.Prune(ctx); return err },
		"Update":             func() error { return k.db.Model(&keptUser{ID: id}).Update("name", "y").Error },
		"Update by ID":       func() error { return k.db.Model(&keptUser{}).Where("kept_users.id = ?", id).Update("name", "z").Error },
		"Save":               func() error { return k.db.Save(&keptUser{ID: id, Name: "x", Number: 1 + id}).Error },
		"Save of a new one":  func() error { return k.db.Save(&keptUser{ID: 999, Name: "x", Number: 999}).Error },
		"Delete":             func() error { return k.db.Delete(&keptUser{}, id).Error },
		"Delete for good":    func() error { return k.db.Unscoped().Delete(&keptUser{ID: id}).Error },
		"Raw":                func() error { return k.db.Raw("SELECT id FROM kept_users WHERE name = 'x'").Scan(&[]uint{}).Error },
		"Raw of a model":     func() error { return k.db.Raw("SELECT * FROM kept_users").Find(&[]keptUser{}).Error },
		"another table":      func() error { return k.db.Exec("CREATE TABLE IF NOT EXISTS others (id integer)").Error },
		"a migration":        func() error { return k.sessions.Migrate(ctx) },
		"AutoMigrate":        func() error { return k.db.AutoMigrate(&keptUser{}) },
		"a query of a model": func() error { return k.db.Where("name = ?", "x").Find(&[]keptUser{}).Error },
	} {
		id = k.sign().OwnerID
		k.warm(s)
		if err := run(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		hits := k.cache.Stats().Hits
		_, err := k.sessions.Authenticate(ctx, string(s.Token), gormsessions.WithOwner)
		k.must(err)
		if k.cache.Stats().Hits == hits {
			t.Errorf("%s: what it does not change is not served", name)
		}
	}
}

// keptPanics has hooks that do.
type keptPanics keptUser

func (keptPanics) TableName() string { return "kept_users" }

func (keptPanics) AfterUpdate(*gorm.DB) error { panic("update") }
func (keptPanics) AfterDelete(*gorm.DB) error { panic("delete") }

func panics(fn func()) (did bool) {
	defer func() { did = recover() != nil }()
	fn()
	return false
}

func TestCachedPanics(t *testing.T) {
	k := startKept(t, gormsessions.Config{}, &gorm.Config{SkipDefaultTransaction: true})
	for name, write := range map[string]func(u *keptPanics){
		"update": func(u *keptPanics) { k.db.Model(u).Update("name", "x") },
		"delete": func(u *keptPanics) { k.db.Delete(u) },
	} {
		s := k.sign()
		k.warm(s)
		if !panics(func() { write(&keptPanics{ID: s.OwnerID}) }) {
			t.Errorf("%s: no panic", name)
		}
		k.same(name, s)
	}
}

func TestCachedEvictionPanics(t *testing.T) {
	for name, create := range map[string]func(db *gorm.DB, s *keptSession){
		"alone": func(db *gorm.DB, s *keptSession) {
			if !panics(func() { db.Create(s) }) {
				t.Error("no panic")
			}
		},
		"in a transaction": func(db *gorm.DB, s *keptSession) {
			tx := db.Begin()
			if !panics(func() { tx.Create(s) }) {
				t.Error("no panic")
			}
			tx.Commit()
		},
	} {
		k := startKept(t, gormsessions.Config{MaxPerOwner: 1}, &gorm.Config{SkipDefaultTransaction: true})
		s := k.sign()
		k.warm(s)
		next := &keptSession{Panics: true}
		next.OwnerID = s.OwnerID
		create(k.db, next)
		if row, err := k.sessions.Get(t.Context(), gormsessions.WithID(s.ID)); err != nil || row.RevokedAt == nil {
			t.Errorf("%s: not evicted: %v", name, err)
		}
		k.same(name, s)
	}
}

func TestCachedOpaqueField(t *testing.T) {
	k := startKept(t, gormsessions.Config{}, &gorm.Config{})
	s := k.sign()
	k.must(k.db.Model(s).Update("prefs", datatypes.NewJSONType(map[string]any{"a": []any{"b"}})).Error)
	got := k.warm(s)
	got.Prefs.Data()["a"].([]any)[0] = "other"
	got.Prefs.Data()["more"] = true
	k.same("a copy written to", s)
}

type namedUser struct {
	ID   string `gorm:"primaryKey;size:20"`
	Name string
}

type namedSession struct {
	gormsessions.Session[namedUser, string]
}

// Keys that are not spelled alike may be the same to a collation.
func TestCachedCollation(t *testing.T) {
	d := conformance.MariaDB()
	db := d.Open(t, d.Dialect(t), &gorm.Config{Logger: logger.Discard})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(db.Exec("ALTER DATABASE CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci").Error)
	must(db.AutoMigrate(&namedUser{}))
	cache, err := sessioncache.New(sessioncache.Config{TTL: gormsessions.Never})
	must(err)
	t.Cleanup(func() { must(cache.Close()) })
	sessions := gormsessions.New[namedSession](gormsessions.Config{Cache: cache})
	must(db.Use(sessions))
	must(db.Create(&namedUser{ID: "ab"}).Error)
	s := &namedSession{}
	s.OwnerID = "ab"
	must(sessions.Create(t.Context(), s))
	for _, spelling := range []string{"AB", "ab ", "äb", "a\x01b", "ab\x1f", "a\x7fb"} {
		for range 3 {
			_, err := sessions.Authenticate(t.Context(), string(s.Token), gormsessions.WithOwner)
			must(err)
		}
		if rows := db.Model(&namedUser{}).Where("id = ?", spelling).Update("name", "as "+spelling).RowsAffected; rows != 1 {
			t.Fatalf("%q changed %d rows", spelling, rows)
		}
		got, err := sessions.Authenticate(t.Context(), string(s.Token), gormsessions.WithOwner)
		must(err)
		if got.Owner.Name != "as "+spelling {
			t.Errorf("%q: the owner is %q still", spelling, got.Owner.Name)
		}
	}
	if cache.Stats().Hits == 0 {
		t.Errorf("the cache took no part: %+v", cache.Stats())
	}
}

// What a hook puts into Data need not be what encoding/json makes.
func TestCachedDataOfAHook(t *testing.T) {
	k := startKept(t, gormsessions.Config{}, &gorm.Config{})
	s := k.sign()
	ctx := context.WithValue(t.Context(), foundKey{}, func(s *keptSession) {
		s.Data = datatypes.JSONMap{"list": []string{"a"}, "deep": []any{map[string]int{"a": 1}}, "pointer": &keptUser{Name: "ada"}, "n": 1}
	})
	hits := k.cache.Stats().Hits
	for range 5 {
		got, err := k.sessions.Authenticate(ctx, string(s.Token))
		k.must(err)
		list, deep, pointer := got.Data["list"].([]string), got.Data["deep"].([]any)[0].(map[string]int), got.Data["pointer"].(*keptUser)
		if list[0] != "a" || deep["a"] != 1 || pointer.Name != "ada" || got.Data["n"] != 1 {
			t.Fatalf("got %v", got.Data)
		}
		list[0], deep["a"], pointer.Name = "b", 2, "eve"
	}
	if k.cache.Stats().Hits < hits+2 {
		t.Errorf("the cache took no part: %+v", k.cache.Stats())
	}
}

// What the cache is told of by callbacks that are gone, it is not told of.
func TestCachedWithoutCallbacks(t *testing.T) {
	for _, removed := range []string{"cache_create", "cache_updated", "cache_deleted", "cache_raw", "cache_query", "cache_row"} {
		k := startKept(t, gormsessions.Config{}, &gorm.Config{SkipDefaultTransaction: true})
		s := k.sign()
		_, err := k.sessions.Authenticate(t.Context(), string(s.Token)) // which notes its use
		k.must(err)
		all := k.db.Callback()
		for _, processor := range []interface{ Remove(string) error }{all.Create(), all.Update(), all.Delete(), all.Raw(), all.Query(), all.Row()} {
			k.must(processor.Remove(k.sessions.Name() + ":" + removed))
		}
		for range 3 {
			_, err := k.sessions.Authenticate(t.Context(), string(s.Token))
			k.must(err)
		}
		if stats := k.cache.Stats(); stats.Hits > 0 {
			t.Errorf("without %s: %+v", removed, stats)
		}
	}
}

// What another plugin adds to the statement may hang on the request.
func TestCachedTenants(t *testing.T) {
	k := startKept(t, gormsessions.Config{}, &gorm.Config{})
	type tenant struct{}
	k.must(k.db.Callback().Query().Before("gorm:query").Register("test:tenant", func(db *gorm.DB) {
		if id, ok := db.Statement.Context.Value(tenant{}).(uint); ok && db.Statement.Table == "kept_sessions" {
			db.Where("kept_sessions.owner_id = ?", id)
		}
	}))
	s := k.sign()
	for range 3 {
		_, err := k.sessions.Authenticate(context.WithValue(t.Context(), tenant{}, s.OwnerID), string(s.Token))
		k.must(err)
	}
	if _, err := k.sessions.Authenticate(context.WithValue(t.Context(), tenant{}, s.OwnerID+1), string(s.Token)); err != gormsessions.ErrNoSession {
		t.Errorf("another tenant's: %v", err)
	}
}
