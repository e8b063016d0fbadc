// Package tests holds the tests that need more packages than importers of
// gormsessions should ever see.
package tests

import (
	"errors"
	"path/filepath"
	"slices"
	"testing"

	"github.com/glebarez/sqlite"
	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/internal/conformance"
	"gorm.io/gorm"
	"gorm.io/plugin/dbresolver"
)

// TestR28WithoutCGO runs the suite through a SQLite driver in Go alone.
func TestR28WithoutCGO(t *testing.T) {
	d := conformance.Database{Name: "sqlite-go", Conns: conformance.SQLiteConns, Dialect: func(t testing.TB) gorm.Dialector {
		return sqlite.Open(filepath.Join(t.TempDir(), "test.db") +
			"?_pragma=foreign_keys(1)&_pragma=journal_mode(WAL)&_pragma=busy_timeout(5000)&_txlock=immediate")
	}}
	for _, v := range conformance.Variants(d)[:2] {
		t.Run(v.Name, func(t *testing.T) {
			t.Parallel()
			conformance.Run(t, d, v)
		})
	}
}

// TestR28DBResolver runs the suite with reads and writes told apart, on one
// database that is both.
func TestR28DBResolver(t *testing.T) {
	for _, d := range []conformance.Database{conformance.SQLiteFile(), conformance.PostgreSQL(), conformance.MariaDB()} {
		d.Prepare = func(t testing.TB, db *gorm.DB, dialector gorm.Dialector) {
			t.Helper()
			resolver := dbresolver.Register(dbresolver.Config{
				Sources: []gorm.Dialector{dialector}, Replicas: []gorm.Dialector{dialector}})
			if err := db.Use(resolver); err != nil {
				t.Fatal(err)
			}
			resolver.SetMaxOpenConns(10) // it has opened pools of its own
			t.Cleanup(func() { closePools(resolver) })
		}
		t.Run(d.Name, func(t *testing.T) {
			t.Parallel()
			conformance.Run(t, d, conformance.Variants(d)[0])
		})
	}
}

// TestReplicaBehind reads through dbresolver from a replica that has none of the
// rows: what must be fresh is asked of the primary.
func TestReplicaBehind(t *testing.T) {
	for _, after := range []bool{false, true} {
		d := conformance.SQLiteFile()
		primary, replica := d.Dialect(t), d.Dialect(t)
		if err := d.Open(t, replica, &gorm.Config{}).Use(gormsessions.New[conformance.UserSession](gormsessions.Config{})); err != nil {
			t.Fatal(err)
		}
		db := d.Open(t, primary, &gorm.Config{})
		resolver := dbresolver.Register(dbresolver.Config{Replicas: []gorm.Dialector{replica}})
		sessions := gormsessions.New[conformance.UserSession](gormsessions.Config{})
		plugins := []gorm.Plugin{resolver, sessions}
		if after {
			slices.Reverse(plugins)
		}
		for _, p := range plugins {
			if err := db.Use(p); err != nil {
				t.Fatal(err)
			}
		}
		user := conformance.User{Name: "ada"}
		if err := db.Create(&user).Error; err != nil {
			t.Fatal(err)
		}
		s := conformance.UserSession{}
		s.OwnerID = user.ID
		if err := sessions.Create(t.Context(), &s); err != nil {
			t.Fatal(err)
		}
		if _, err := sessions.Authenticate(t.Context(), string(s.Token), gormsessions.WithOwner); err != nil {
			t.Errorf("right after Create: %v", err)
		}
		if err := sessions.Extend(t.Context(), &s); err != nil {
			t.Errorf("Extend: %v", err)
		}
		// Control: plain GORM reads the replica, which has no row.
		var list []conformance.UserSession
		if err := db.Find(&list).Error; err != nil || len(list) != 0 {
			t.Errorf("%d rows, %v: there is no replica behind", len(list), err)
		}
		// Who asks for the replica gets it.
		_, err := sessions.With(db.Clauses(dbresolver.Read)).Authenticate(t.Context(), string(s.Token))
		if !errors.Is(err, gormsessions.ErrNoSession) {
			t.Errorf("from the replica: %v", err)
		}
		closePools(resolver)
	}
}

func closePools(resolver *dbresolver.DBResolver) {
	_ = resolver.Call(func(pool gorm.ConnPool) error {
		if closer, ok := pool.(interface{ Close() error }); ok {
			return closer.Close()
		}
		return nil
	})
}
