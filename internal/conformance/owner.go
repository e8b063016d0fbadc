package conformance

import (
	"fmt"
	"testing"

	"github.com/google/uuid"
	"github.com/gormsessions/gormsessions"
	"gorm.io/gorm"
)

// Owners with keys of other types.
type (
	Project struct {
		ID      uuid.UUID `gorm:"primaryKey;size:36"`
		OwnerID uint      // which is not the project's side of a session
	}
	Account struct {
		Code string `gorm:"primaryKey;size:20"`
	}
	Robot struct {
		ID int64
	}

	ProjectKey struct {
		gormsessions.Session[Project, uuid.UUID]
	}
	AccountKey struct {
		gormsessions.Session[Account, string]
	}
	RobotKey struct {
		gormsessions.Session[Robot, int64]
	}
)

// Login is one table for several kinds of owners.
type Login struct {
	gormsessions.Base
	OwnerType string `gorm:"size:50;index:login_owner"`
	OwnerID   uint   `gorm:"index:login_owner"`
}

type (
	Person struct {
		ID     uint
		Logins []Login `gorm:"polymorphic:Owner"`
	}
	Machine struct {
		ID     uint
		Logins []Login `gorm:"polymorphic:Owner;polymorphicValue:machine"`
	}
)

func ownerKind[O any, K comparable, T any, P interface {
	*T
	gormsessions.Model
}](s suite, t *testing.T, owner *O, key, zero K, session func() *gormsessions.Session[O, K], value P) {
	t.Helper()
	e := s.start(t, gormsessions.Config{})
	sessions := gormsessions.New[T, P](gormsessions.Config{})
	must(t, e.db.Use(sessions))
	must(t, e.db.Create(owner).Error)
	session().Owner = owner
	must(t, e.db.Create(value).Error)
	want(t, "OwnerID", session().OwnerID, key)
	got, err := sessions.Authenticate(e.ctx, string(session().Token), gormsessions.WithOwner)
	must(t, err)
	want(t, "ID", P(got).SessionBase().ID, value.SessionBase().ID)
	for _, o := range []any{owner, *owner, key, &key} {
		n, err := sessions.Count(e.ctx, gormsessions.ForOwner(o))
		must(t, err)
		want(t, fmt.Sprintf("ForOwner(%T)", o), n, 1)
	}
	_, err = sessions.Count(e.ctx, gormsessions.ForOwner(zero))
	wantErr(t, "zero key", err, gormsessions.ErrZeroOwner)
	_, err = sessions.Count(e.ctx, gormsessions.ForOwner(e.user))
	wantErr(t, "an owner of another model", err, gormsessions.ErrWrongOwner)
	must(t, e.db.Delete(owner).Error)
	n, err := sessions.Count(e.ctx)
	must(t, err)
	want(t, "sessions of a deleted owner", n, 0)
}

func (s suite) owner(t *testing.T) {
	t.Run("KeyTypes", func(t *testing.T) {
		t.Run("uuid", func(t *testing.T) {
			v := &ProjectKey{}
			id := uuid.New()
			ownerKind[Project, uuid.UUID, ProjectKey](s, t, &Project{ID: id}, id, uuid.Nil, func() *gormsessions.Session[Project, uuid.UUID] { return &v.Session }, v)
		})
		t.Run("string", func(t *testing.T) {
			v := &AccountKey{}
			ownerKind[Account, string, AccountKey](s, t, &Account{Code: "acme"}, "acme", "", func() *gormsessions.Session[Account, string] { return &v.Session }, v)
		})
		t.Run("int64", func(t *testing.T) {
			v := &RobotKey{}
			ownerKind[Robot, int64, RobotKey](s, t, &Robot{ID: 7}, 7, 0, func() *gormsessions.Session[Robot, int64] { return &v.Session }, v)
		})
	})

	t.Run("R22_ZeroOwner", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		e.sign()
		var nobody *User
		for name, owner := range map[string]any{
			"nil": nil, "nil pointer": nobody, "unsaved": &User{}, "unsaved value": User{}, "zero key": uint(0), "zero int": 0, "nil pointer to a key": (*uint)(nil),
		} {
			scope := gormsessions.ForUser(owner)
			var list []UserSession
			err := e.db.Scopes(scope).Find(&list).Error
			wantErr(t, name+": Find", err, gormsessions.ErrZeroOwner)
			want(t, name+": rows", len(list), 0)
			var n int64
			wantErr(t, name+": Count", e.db.Model(&UserSession{}).Scopes(scope).Count(&n).Error, gormsessions.ErrZeroOwner)
			want(t, name+": count", n, 0)
			wantErr(t, name+": Updates", e.db.Model(&UserSession{}).Scopes(scope).Update("device", "x").Error, gormsessions.ErrZeroOwner)
			wantErr(t, name+": Delete", e.db.Scopes(scope).Delete(&UserSession{}).Error, gormsessions.ErrZeroOwner)
			_, err = gorm.G[UserSession](e.db).Scopes(gormsessions.Stmt(scope)).Delete(e.ctx)
			wantErr(t, name+": generics", err, gormsessions.ErrZeroOwner)
			_, err = e.sessions.Revoke(e.ctx, "x", scope)
			wantErr(t, name+": Revoke", err, gormsessions.ErrZeroOwner)
			// Where GORM drops the error, the condition matches nothing, nor does
			// its negation.
			list = nil
			_ = e.db.Where(e.db.Model(&UserSession{}).Scopes(scope)).Find(&list).Error
			want(t, name+": grouped", len(list), 0)
			_ = e.db.Not(e.db.Model(&UserSession{}).Scopes(scope)).Find(&list).Error
			want(t, name+": negated", len(list), 0)
			for _, in := range []string{"id IN (?)", "id NOT IN (?)"} {
				var users []User
				err = e.db.Where(in, e.db.Model(&UserSession{}).Select("owner_id").Scopes(scope)).Find(&users).Error
				if err == nil || len(users) > 0 {
					t.Errorf("%s: %s: got %d rows, %v", name, in, len(users), err)
				}
				err = e.db.Where(in, scope(e.db.Model(&UserSession{}).Select("id"))).Delete(&UserSession{}).Error
				if err == nil {
					t.Errorf("%s: %s, called directly: got no error", name, in)
				}
			}
		}
		row := e.row(e.must1().ID)
		want(t, "untouched", row.Device, "Firefox")
		// Control: the owner itself.
		want(t, "the owner's", e.count(gormsessions.ForUser(&e.user)), 1)
	})

	t.Run("WrongOwner", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		session := e.sign()
		type OrgID uint
		for name, owner := range map[string]any{
			"another model": &Robot{ID: int64(e.user.ID)}, "text": fmt.Sprint(e.user.ID), "another's key type": OrgID(e.user.ID),
			"negative": -1, "fraction": 1.5, "float": 1.0, "a session": session, "uuid": uuid.New(), "slice": []uint{1},
		} {
			_, err := e.sessions.Count(e.ctx, gormsessions.ForOwner(owner))
			wantErr(t, name, err, gormsessions.ErrWrongOwner)
		}
		for _, key := range []any{int(e.user.ID), int64(e.user.ID), uint8(e.user.ID)} {
			want(t, fmt.Sprintf("%T", key), e.count(gormsessions.ForOwner(key)), 1)
		}
		u := e.newUser("eve")
		both := &UserSession{}
		both.OwnerID, both.Owner = e.user.ID, &u
		wantErr(t, "Owner and another's OwnerID", e.db.Create(both).Error, gormsessions.ErrWrongOwner)
		for name, v := range map[string]*UserSession{"none": {}, "unsaved": {Session: gormsessions.Session[User, uint]{Owner: &User{Name: "new"}}}} {
			wantErr(t, name, e.db.Create(v).Error, gormsessions.ErrZeroOwner)
		}
		var n int64
		must(t, e.db.Model(&User{}).Count(&n).Error)
		want(t, "users", n, 2)
		var users []User
		wantErr(t, "a scope on another model", e.db.Scopes(gormsessions.Active).Find(&users).Error, gormsessions.ErrNotModel)
		guests := gormsessions.New[Guest](gormsessions.Config{})
		must(t, e.db.Use(guests))
		_, err := guests.Count(e.ctx, gormsessions.ForOwner(1))
		wantErr(t, "a model without an owner", err, gormsessions.ErrNotModel)
		_, err = guests.Count(e.ctx, gormsessions.WithOwner)
		wantErr(t, "WithOwner without an owner", err, gormsessions.ErrNotModel)
	})

	t.Run("R23_OwnerDeleted", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		session := e.sign()
		must(t, e.db.Delete(&e.user).Error) // softly
		_, err := e.sessions.Authenticate(e.ctx, string(session.Token), gormsessions.WithOwner)
		want(t, "WithOwner, soft-deleted", err, gormsessions.ErrNoSession)
		e.authenticate(session)
		want(t, "WithOwner, counted", e.count(gormsessions.WithOwner), 0)
		must(t, e.db.Unscoped().Delete(&e.user).Error)
		e.refused(session.Token)
		want(t, "sessions", e.count(), 0)

		// By SQL that GORM's callbacks never see, the foreign key alone.
		e.user = e.newUser("eve")
		session = e.sign()
		must(t, e.db.Exec("DELETE FROM "+tableOf(t, e.db, &User{})).Error)
		e.refused(session.Token)
		want(t, "sessions", e.count(), 0)
	})

	t.Run("R23_WithoutForeignKeys", func(t *testing.T) {
		dialect, c, log := s.Dialect(t), newClock(), &recorder{}
		config := &gorm.Config{NowFunc: c.Now, Logger: log, DisableForeignKeyConstraintWhenMigrating: true}
		s.Setup(config)
		db := s.Open(t, dialect, config)
		sessions := gormsessions.New[UserSession](gormsessions.Config{})
		must(t, db.Use(sessions))
		u, other := User{Name: "ada"}, User{Name: "eve"}
		must(t, db.Create(&u).Error)
		must(t, db.Create(&other).Error)
		var last UserSession
		for _, id := range []uint{u.ID, u.ID, other.ID, other.ID, other.ID} {
			v := UserSession{}
			v.OwnerID = id
			must(t, db.Create(&v).Error)
			must(t, sessions.Rotate(t.Context(), &v))
			last = v
		}
		retired := func(what string, left int64) {
			t.Helper()
			var n int64
			must(t, db.Table(tableOf(t, db, &UserSession{})+"_retired_tokens").Count(&n).Error)
			want(t, "retired tokens "+what, n, left)
		}
		must(t, db.Delete(&u).Error)
		n, err := sessions.Count(t.Context())
		must(t, err)
		want(t, "after a soft deletion", n, 5)
		retired("after a soft deletion", 5)
		must(t, db.Unscoped().Delete(&u).Error)
		n, err = sessions.Count(t.Context())
		must(t, err)
		want(t, "after the deletion", n, 3)
		retired("after the deletion", 3)
		odd := User{Name: "odd"} // deleted by text that GORM sees no OR in, beside another key
		must(t, db.Create(&odd).Error)
		v := UserSession{}
		v.OwnerID = odd.ID
		must(t, db.Create(&v).Error)
		must(t, sessions.Rotate(t.Context(), &v))
		must(t, db.Unscoped().Where("name = ?\nOR\nname = ''", "odd").Delete(&User{ID: odd.ID + 1000}).Error)
		n, err = sessions.Count(t.Context())
		must(t, err)
		want(t, "after a deletion by odd text", n, 3)
		retired("after a deletion by odd text", 3)
		must(t, db.Delete(&last).Error)
		retired("after a session's deletion", 2)
		// Conditions beside the key that widen what is deleted.
		must(t, db.Where("owner_id = ?", other.ID).Or("owner_id = 0").Delete(&last).Error)
		n, err = sessions.Count(t.Context())
		must(t, err)
		want(t, "after a wider deletion", n, 0)
		retired("after a wider deletion", 0)
	})

	t.Run("Polymorphic", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		must(t, e.db.AutoMigrate(&Person{}, &Machine{}))
		logins := gormsessions.New[Login](gormsessions.Config{})
		must(t, e.db.Use(logins))
		person, machine := Person{Logins: []Login{{}, {}}}, Machine{Logins: []Login{{}}}
		must(t, e.db.Create(&person).Error)
		must(t, e.db.Create(&machine).Error)
		want(t, "the same key", person.ID, machine.ID)
		count := func(owner any) int64 {
			t.Helper()
			n, err := logins.Count(e.ctx, gormsessions.ForOwner(owner))
			must(t, err)
			return n
		}
		want(t, "person's", count(&person), 2)
		want(t, "machine's", count(machine), 1)
		got, err := logins.Authenticate(e.ctx, string(machine.Logins[0].Token))
		must(t, err)
		want(t, "OwnerType", got.OwnerType, "machine")
		_, err = logins.Count(e.ctx, gormsessions.ForOwner(person.ID))
		wantErr(t, "a bare key", err, gormsessions.ErrWrongOwner)
		_, err = logins.Count(e.ctx, gormsessions.ForOwner(&Person{}))
		wantErr(t, "unsaved", err, gormsessions.ErrZeroOwner)
		want(t, "another kind", count(e.user), 0)
		var loaded Person
		must(t, e.db.Preload("Logins", gormsessions.Active).First(&loaded, person.ID).Error)
		want(t, "preloaded", len(loaded.Logins), 2)
		e.clock.Advance(8 * day)
		must(t, e.db.Preload("Logins", gormsessions.Active).First(&loaded, person.ID).Error)
		want(t, "preloaded, expired", len(loaded.Logins), 0)
	})
}

// must1 is the only session there is.
func (e *env) must1() *UserSession {
	e.t.Helper()
	list, err := e.sessions.List(e.ctx)
	must(e.t, err)
	if len(list) != 1 {
		e.t.Fatalf("%d sessions, want 1", len(list))
	}
	return &list[0]
}
