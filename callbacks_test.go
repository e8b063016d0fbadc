package gormsessions_test

import (
	"path/filepath"
	"testing"

	"github.com/gormsessions/gormsessions"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

// What GORM keeps of its callbacks is read by the names of its fields: where a new GORM
// has others, all goes by its builder, and this says so.
func TestAlone(t *testing.T) {
	db, err := gorm.Open(sqlite.Open(filepath.Join(t.TempDir(), "test.db")), &gorm.Config{Logger: logger.Discard})
	if err != nil {
		t.Fatal(err)
	}
	if pool, err := db.DB(); err == nil {
		defer pool.Close()
	}
	sessions := gormsessions.New[cachedSession](gormsessions.Config{})
	if err := db.Use(sessions); err != nil {
		t.Fatal(err)
	}
	alone := func(what string, wantQueries, wantCreates bool) {
		t.Helper()
		if queries, creates := gormsessions.Alone(sessions); queries != wantQueries || creates != wantCreates {
			t.Errorf("%s: alone in queries %v and creates %v, want %v and %v", what, queries, creates, wantQueries, wantCreates)
		}
	}
	alone("at first", true, true)
	nothing := func(*gorm.DB) {}
	steps := []struct {
		what             string
		change           func() error
		queries, creates bool
	}{
		{"beside another", func() error { return db.Callback().Query().After("gorm:query").Register("other", nothing) }, false, true},
		{"once that is removed", func() error { return db.Callback().Query().Remove("other") }, true, true},
		{"beside one of creates", func() error { return db.Callback().Create().Before("*").Register("other", nothing) }, true, false},
		{"with GORM's replaced", func() error { return db.Callback().Query().Replace("gorm:preload", nothing) }, false, false},
	}
	for _, s := range steps {
		if err := s.change(); err != nil {
			t.Fatal(err)
		}
		alone(s.what, s.queries, s.creates)
	}
}

type (
	noList    struct{}
	noSlice   struct{ callbacks int }
	noPointer struct{ callbacks []struct{ name string } }
	noStruct  struct{ callbacks []*int }
	noNames   struct{ callbacks []*struct{ replace bool } }
	noTexts   struct {
		callbacks []*struct {
			name    []byte
			replace bool
		}
	}
	noTruth struct {
		callbacks []*struct {
			name    string
			replace int
		}
	}
)

func (*noList) Remove(string) error    { return nil }
func (*noSlice) Remove(string) error   { return nil }
func (*noPointer) Remove(string) error { return nil }
func (*noStruct) Remove(string) error  { return nil }
func (*noNames) Remove(string) error   { return nil }
func (*noTexts) Remove(string) error   { return nil }
func (*noTruth) Remove(string) error   { return nil }

func TestAloneAmongUnknown(t *testing.T) {
	for _, of := range []interface{ Remove(string) error }{
		&noList{}, &noSlice{1}, &noPointer{[]struct{ name string }{{"x"}}}, &noStruct{[]*int{new(int)}}, &noNames{[]*struct{ replace bool }{{}}},
		&noTexts{[]*struct {
			name    []byte
			replace bool
		}{{}}},
		&noTruth{[]*struct {
			name    string
			replace int
		}{{}}},
	} {
		if gormsessions.AloneAmong(of) {
			t.Errorf("%T: alone", of)
		}
	}
}
