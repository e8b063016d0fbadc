// Package tests holds the tests that need more packages than importers of
// gormsessions should ever see.
package tests

import (
	"path/filepath"
	"testing"

	"github.com/glebarez/sqlite"
	"github.com/gormsessions/gormsessions/internal/conformance"
	"gorm.io/gorm"
	"gorm.io/plugin/dbresolver"
)

// TestR28WithoutCGO runs the suite through a SQLite driver in Go alone.
func TestR28WithoutCGO(t *testing.T) {
	d := conformance.Database{Name: "sqlite-go", Dialect: func(t testing.TB) gorm.Dialector {
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
			t.Cleanup(func() {
				_ = resolver.Call(func(pool gorm.ConnPool) error {
					if closer, ok := pool.(interface{ Close() error }); ok {
						return closer.Close()
					}
					return nil
				})
			})
		}
		t.Run(d.Name, func(t *testing.T) {
			t.Parallel()
			conformance.Run(t, d, conformance.Variants(d)[0])
		})
	}
}
