package conformance

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/gormsessions/gormsessions"
	"gorm.io/datatypes"
	"gorm.io/gorm"
	"gorm.io/gorm/clause"
)

// mixed is an env with one active, one expired, one revoked session, and one
// that is both expired and revoked, of each of two users.
func (s suite) mixed(t *testing.T) (e *env, ada, eve User) {
	e = s.start(t, gormsessions.Config{})
	ada, eve = e.user, e.newUser("eve")
	for _, u := range []User{ada, eve} {
		e.user = u
		past := e.clock.Now().Add(-time.Hour)
		e.sign(func(v *UserSession) { v.Device = "active" })
		e.sign(func(v *UserSession) { v.Device, v.ExpiresAt = "expired", &past })
		e.sign(func(v *UserSession) { v.Device, v.RevokedAt = "revoked", &past })
		e.sign(func(v *UserSession) { v.Device, v.ExpiresAt, v.RevokedAt = "both", &past, &past })
	}
	e.user = ada
	return e, ada, eve
}

func (s suite) scopes(t *testing.T) {
	e, ada, eve := s.mixed(t)
	active, owned := gormsessions.Active, gormsessions.ForUser(&ada)

	t.Run("Meaning", func(t *testing.T) {
		for name, c := range map[string]struct {
			scopes []gormsessions.Scope
			want   int64
		}{
			"none": {nil, 8}, "Active": {[]gormsessions.Scope{active}, 2}, "Expired": {[]gormsessions.Scope{gormsessions.Expired}, 4},
			"Revoked": {[]gormsessions.Scope{gormsessions.Revoked}, 4}, "Ended": {[]gormsessions.Scope{gormsessions.Ended}, 6},
			"Active and Ended": {[]gormsessions.Scope{active, gormsessions.Ended}, 0},
			"ForUser":          {[]gormsessions.Scope{owned}, 4}, "ForUser Ended": {[]gormsessions.Scope{owned, gormsessions.Ended}, 3},
			"two users":        {[]gormsessions.Scope{owned, gormsessions.ForUser(eve)}, 0},
			"WithID of nobody": {[]gormsessions.Scope{gormsessions.WithID(uuid.Nil)}, 0},
		} {
			want(t, name, e.count(c.scopes...), c.want)
		}
	})

	t.Run("R27_Conditions", func(t *testing.T) {
		find := func(db *gorm.DB) int {
			t.Helper()
			var list []UserSession
			must(t, db.Find(&list).Error)
			return len(list)
		}
		db := e.db
		want(t, "Where", find(db.Where("owner_id = ?", ada.ID).Scopes(active)), 1)
		want(t, "Or before", find(db.Where("device = ?", "expired").Or("device = ?", "active").Scopes(active)), 2)
		want(t, "Or alone before", find(db.Or("device = ?", "active").Scopes(active)), 2)
		want(t, "Or chained after Scopes", find(db.Scopes(active).Where("device = ?", "expired").Or("device = ?", "active")), 2)
		want(t, "two scopes and an Or", find(db.Where("1 = 0").Or("1 = 1").Scopes(active, owned)), 1)
		want(t, "Not", find(db.Not("device = ?", "active").Scopes(active)), 0)
		want(t, "an or that GORM does not see", find(db.Where("device = 'expired'\nor\tdevice = 'active'").Scopes(active)), 2)
		want(t, "Not of the scope", find(db.Not(db.Model(&UserSession{}).Scopes(active))), 6)
		never := e.sign(func(v *UserSession) { v.IdleTimeout = gormsessions.Never })
		want(t, "Not of Ended, with one that never expires", find(db.Not(db.Model(&UserSession{}).Scopes(gormsessions.Ended))), 3)
		want(t, "Not of Expired, with one that never expires", find(db.Not(db.Model(&UserSession{}).Scopes(gormsessions.Expired))), 5)
		must(t, db.Delete(never).Error)
		want(t, "Not of Where", find(db.Not(gormsessions.Where(gormsessions.Fields{"Device": "active", "OwnerID": ada.ID})(db.Model(&UserSession{})))), 7)
		want(t, "Not of Ended", find(db.Not(db.Model(&UserSession{}).Scopes(gormsessions.Ended))), 0+2)
		want(t, "grouped with Or", find(db.Where(db.Model(&UserSession{}).Scopes(active)).Or(db.Model(&UserSession{}).Scopes(gormsessions.Revoked))), 6)
		want(t, "called directly", find(active(db.Model(&UserSession{}))), 2)
		want(t, "Limit and Order", find(db.Scopes(active).Order("created_at").Limit(1)), 1)
		want(t, "alias", find(db.Table("? AS s", clause.Table{Name: tableOf(t, db, &UserSession{})}).Scopes(active, owned)), 1)
		want(t, "Joins", find(db.Joins("Owner").Scopes(active, owned)), 1)
		want(t, "Joins with a condition on the owner's column", find(db.Joins("Owner").Where("? IS NULL", clause.Column{Table: "Owner", Name: "revoked_at"}).Scopes(active)), 2)
		want(t, "WithOwner", find(db.Scopes(gormsessions.WithOwner, active)), 2)
		want(t, "Preload of the owner", find(db.Preload("Owner").Scopes(active)), 2)

		reused := db.Model(&UserSession{}).Session(&gorm.Session{})
		want(t, "a session used twice", find(active(reused)), 2)
		want(t, "is not changed by the first", find(gormsessions.Revoked(reused)), 4)

		var users []User
		must(t, db.Preload("Sessions", active).Order("id").Find(&users).Error)
		want(t, "preloaded", len(users[0].Sessions), 1)
		want(t, "preloaded", users[0].Sessions[0].Device, "active")
		in := db.Model(&UserSession{}).Select("owner_id").Scopes(active)
		must(t, db.Where("id IN (?)", in).Find(&users).Error)
		want(t, "subquery", len(users), 2)
		must(t, db.Where("id NOT IN (?)", in).Find(&users).Error)
		want(t, "subquery, not in", len(users), 0)
		var devices []string
		must(t, db.Model(&UserSession{}).Scopes(active, owned).Pluck("device", &devices).Error)
		want(t, "Pluck", len(devices) == 1 && devices[0] == "active", true)
		var smaller []struct{ Device string }
		must(t, db.Model(&UserSession{}).Scopes(active).Find(&smaller).Error)
		want(t, "a smaller struct", len(smaller), 2)
		var n int64
		must(t, db.Model(&UserSession{}).Distinct("owner_id").Scopes(active).Count(&n).Error)
		want(t, "Distinct Count", n, 2)
		list, err := gorm.G[UserSession](db).Scopes(gormsessions.Stmt(active, owned)).Find(e.ctx)
		must(t, err)
		want(t, "generics", len(list), 1)
		n, err = gorm.G[UserSession](db).Scopes(gormsessions.Stmt(active)).Count(e.ctx, "*")
		must(t, err)
		want(t, "generics Count", n, 2)
		first, err := gorm.G[UserSession](db).Scopes(gormsessions.Stmt(owned), gormsessions.Stmt(gormsessions.Revoked)).Order("device").First(e.ctx)
		must(t, err)
		want(t, "generics First", first.Device, "both")
		var rows []map[string]any
		wantErr(t, "no model", db.Table(tableOf(t, db, &UserSession{})).Scopes(active).Find(&rows).Error, gormsessions.ErrNotModel)
	})

	t.Run("AuthenticateIsNotWidened", func(t *testing.T) {
		all := func(db *gorm.DB) *gorm.DB { return db.Or("1 = 1") }
		nested := func(db *gorm.DB) *gorm.DB { return db.Scopes(all) }
		for _, c := range []struct {
			scopes []gormsessions.Scope
			want   error
		}{
			{[]gormsessions.Scope{all}, gormsessions.ErrNoSession},
			{[]gormsessions.Scope{active, all}, gormsessions.ErrNoSession},
			{[]gormsessions.Scope{nested}, gormsessions.ErrInvalidValue},
			{[]gormsessions.Scope{func(db *gorm.DB) *gorm.DB { return db.Where("1 = 0").Or("1 = 1") }}, gormsessions.ErrNoSession},
		} {
			v := e.sign()
			e.exec("DELETE FROM {t} WHERE id = ?", v.ID)
			_, err := e.sessions.Authenticate(e.ctx, string(v.Token), c.scopes...)
			wantErr(t, "a token that is gone", err, c.want)
		}
		v := e.sign()
		_, err := e.sessions.Authenticate(e.ctx, string(v.Token), gormsessions.ForUser(eve))
		want(t, "limited to another user", err, gormsessions.ErrNoSession)
		_, err = e.sessions.Authenticate(e.ctx, string(v.Token), owned, gormsessions.WithOwner)
		must(t, err)
		_, err = e.sessions.Authenticate(e.ctx, string(v.Token), gormsessions.ForUser(nil))
		wantErr(t, "limited to nobody", err, gormsessions.ErrZeroOwner)
		must(t, e.db.Delete(v).Error)
	})

	t.Run("ColumnsThatAScopeLeavesOut", func(t *testing.T) {
		past := e.clock.Now().Add(-time.Hour)
		revoked := e.sign(func(v *UserSession) { v.RevokedAt = &past })
		expired := e.sign(func(v *UserSession) { v.ExpiresAt = &past })
		live := e.sign()
		for name, scope := range map[string]gormsessions.Scope{
			"Select": func(db *gorm.DB) *gorm.DB { return db.Select("id", "token_digest", "device") },
			"Omit":   func(db *gorm.DB) *gorm.DB { return db.Omit("revoked_at", "ExpiresAt") },
			"nested": func(db *gorm.DB) *gorm.DB {
				return db.Scopes(func(db *gorm.DB) *gorm.DB { return db.Omit("revoked_at", "expires_at") })
			},
			"clause": func(db *gorm.DB) *gorm.DB {
				return db.Clauses(clause.Select{Columns: []clause.Column{{Name: "id"}, {Name: "token_digest"}}})
			},
			"expression": func(db *gorm.DB) *gorm.DB {
				return db.Select("?, ?", clause.Column{Name: "id"}, clause.Column{Name: "token_digest"})
			},
			"nested and Or": func(db *gorm.DB) *gorm.DB {
				return db.Scopes(func(db *gorm.DB) *gorm.DB { return db.Or("1 = 1").Omit("revoked_at") })
			},
		} {
			for _, v := range []*UserSession{revoked, expired} {
				for _, p := range []*gormsessions.Plugin[UserSession]{e.sessions, e.sessions.With(scope(e.db.Model(&UserSession{})))} {
					if got, err := p.Authenticate(e.ctx, string(v.Token), scope, gormsessions.WithOwner); err == nil {
						t.Errorf("%s: an ended session is accepted: %+v", name, got)
					}
					if err := p.Extend(e.ctx, v); err == nil && p != e.sessions {
						t.Errorf("%s: an ended session is extended", name)
					}
				}
			}
			_, err := e.sessions.Authenticate(e.ctx, string(live.Token), scope)
			wantErr(t, name, err, gormsessions.ErrInvalidValue)
		}
		for _, v := range []*UserSession{revoked, expired, live} {
			must(t, e.db.Delete(v).Error)
		}
	})

	t.Run("R27_UpdatesAndDelete", func(t *testing.T) {
		e, ada, _ := s.mixed(t)
		owned := gormsessions.ForUser(ada.ID)
		tx := e.db.Model(&UserSession{}).Where("device <> ?", "x").Or("1 = 1").Scopes(active).Update("visits", 5)
		must(t, tx.Error)
		want(t, "updated", tx.RowsAffected, 2)
		n, err := gorm.G[UserSession](e.db).Scopes(gormsessions.Stmt(owned, active)).Update(e.ctx, "visits", 7)
		must(t, err)
		want(t, "updated by generics", n, 1)
		tx = e.db.Scopes(gormsessions.Ended, owned).Delete(&UserSession{})
		must(t, tx.Error)
		want(t, "deleted", tx.RowsAffected, 3)
		n, err = gorm.G[UserSession](e.db).Scopes(gormsessions.Stmt(gormsessions.Revoked)).Delete(e.ctx)
		must(t, err)
		want(t, "deleted by generics", n, 2)
		want(t, "left", e.count(), 3)
		want(t, "left active", e.count(active), 2)
	})

	t.Run("Except", func(t *testing.T) {
		v := e.sign()
		before := e.count(owned, active)
		want(t, "Except", e.count(owned, active, gormsessions.Except(v)), before-1)
		key := gormsessions.New[Key](gormsessions.Config{})
		must(t, e.db.Use(key))
		other := Key{}
		other.OwnerID = ada.ID
		must(t, key.Create(e.ctx, &other))
		_, err := e.sessions.Revoke(e.ctx, "x", owned, gormsessions.Except(&other))
		wantErr(t, "Except a session of another model", err, gormsessions.ErrNotModel)
		_, err = e.sessions.Revoke(e.ctx, "x", gormsessions.Except(v))
		wantErr(t, "Except alone", err, gormsessions.ErrNoScope)
		want(t, "still there", e.count(owned, active), before)
		wantErr(t, "Except a nil pointer", e.db.Scopes(gormsessions.Except((*UserSession)(nil))).Find(&[]UserSession{}).Error, gormsessions.ErrInvalidValue)
		must(t, e.db.Delete(v).Error)
	})
}

// Rich has extra fields of many types.
type Rich struct {
	gormsessions.Session[User, uint]
	Device  string `gorm:"not null;index"`
	Nick    *string
	Visits  int8
	Big     uint64
	Score   float64
	Trusted bool
	Seen    *time.Time
	Tenant  uuid.UUID `gorm:"size:36"`
	Renamed string    `gorm:"column:other_name"`
	Alias   sql.NullString
	Tags    []string `gorm:"serializer:json"`
	hidden  string
	Ignored string `gorm:"-"`
}

func (s suite) fields(t *testing.T) {
	e := s.start(t, gormsessions.Config{})
	rich := gormsessions.New[Rich](gormsessions.Config{})
	want(t, "before it is registered", len(rich.ExtraFields()), 0)
	must(t, e.db.Use(rich))
	tenant, seen := uuid.New(), e.clock.Now().Truncate(time.Millisecond).In(time.FixedZone("x", 3*3600))
	one := Rich{Device: "Firefox", Nick: ptr("n"), Visits: 5, Big: 1 << 40, Score: 1.5, Trusted: true, Seen: &seen, Tenant: tenant, Renamed: "r", Alias: sql.NullString{String: "al", Valid: true},
		Tags: []string{"a"}, hidden: "h"}
	two := Rich{Device: "0"}
	one.OwnerID, two.OwnerID = e.user.ID, e.user.ID
	must(t, rich.Create(e.ctx, &one))
	must(t, rich.Create(e.ctx, &two))

	t.Run("ExtraFields", func(t *testing.T) {
		got := rich.ExtraFields()
		names := []string{"Device", "Nick", "Visits", "Big", "Score", "Trusted", "Seen", "Tenant", "Renamed", "Alias", "Tags"}
		if len(got) != len(names) {
			t.Fatalf("got %v, want %v", got, names)
		}
		for i, name := range names {
			want(t, "name", got[i].Name, name)
		}
		want(t, "nullable", got[0].Nullable, false)
		want(t, "nullable", got[1].Nullable, true)
		want(t, "type", got[1].Type, reflect.TypeFor[*string]())
		want(t, "column", got[8].Column, "other_name")
	})

	t.Run("Where", func(t *testing.T) {
		count := func(f gormsessions.Fields) (int64, error) { return rich.Count(e.ctx, gormsessions.Where(f)) }
		for i, f := range []gormsessions.Fields{
			{"Device": "Firefox"}, {"device": "Firefox"}, {"Renamed": "r"}, {"other_name": "r"}, {"Nick": "n"}, {"Nick": ptr("n")},
			{"Visits": 5}, {"Visits": 5.0}, {"Visits": uint16(5)}, {"Visits": json.Number("5")}, {"Big": 1 << 40}, {"Score": 1.5}, {"Score": float32(1.5)},
			{"Trusted": true}, {"Tenant": tenant}, {"Tenant": tenant.String()}, {"Seen": seen}, {"Seen": seen.Format(time.RFC3339Nano)},
			{"Device": []string{"Firefox", "x"}}, {"Device": []any{"Firefox"}}, {"Visits": []int{5, 6}}, {"Device": "Firefox", "Visits": 5, "Nick": "n"},
			{"ID": one.ID}, {"id": one.ID.String()}, {"OwnerID": e.user.ID, "Device": "Firefox"}, {"Tenant": []string{tenant.String()}},
		} {
			n, err := count(f)
			if n != 1 || err != nil {
				t.Errorf("%d %v: got %d, %v, want 1", i, f, n, err)
			}
		}
		for i, f := range []gormsessions.Fields{{"Nick": nil}, {"Device": "0"}, {"Visits": 0, "Device": "0"}} {
			n, err := count(f)
			if n != 1 || err != nil {
				t.Errorf("%d %v: got %d, %v, want 1", i, f, n, err)
			}
		}
		n, err := count(gormsessions.Fields{"Device": []string{}})
		must(t, err)
		want(t, "an empty list", n, 0)
		for _, name := range []string{"", "nope", "1=1", "device; DROP TABLE x", "Device ", "DEVICE", "Token", "TokenDigest", "token_digest", "Data", "data", "Owner", "hidden", "Ignored", "Session"} {
			_, err := count(gormsessions.Fields{name: "x"})
			wantErr(t, "field "+name, err, gormsessions.ErrUnknownField)
		}
		_, err = count(gormsessions.Fields{"device": "a\x00b"})
		wantErr(t, "NUL", err, gormsessions.ErrInvalidValue)
		_, err = count(gormsessions.Fields{"Alias": "a\x00b"})
		wantErr(t, "NUL in a NullString", err, gormsessions.ErrInvalidValue)
		n, err = count(gormsessions.Fields{"Alias": "al"})
		must(t, err)
		want(t, "NullString", n, 1)
		_, err = count(gormsessions.Fields{"device": []any{"a", "\xff"}})
		wantErr(t, "UTF-8", err, gormsessions.ErrInvalidValue)
		_, err = count(gormsessions.Fields{"expires_at": "20000-01-01T00:00:00Z"})
		wantErr(t, "a time", err, gormsessions.ErrInvalidValue)
		type kind string
		for i, f := range []gormsessions.Fields{
			{"Device": 0}, {"Device": false}, {"Device": 0.0}, {"Device": []int{0}}, {"Device": []any{"x", 0}}, {"Device": map[string]any{"a": 1}},
			{"Device": kind("Firefox")}, {"Device": clause.Expr{SQL: "1 = 1"}}, {"Device": gorm.Expr("device")}, {"Device": e.db.Model(&Rich{})},
			{"Device": []any{nil}}, {"Visits": "5"}, {"Visits": 300}, {"Visits": 1.5}, {"Visits": math.NaN()}, {"Visits": json.Number("x")}, {"Big": -1}, {"Trusted": 1},
			{"Tenant": "nope"}, {"Seen": "yesterday"}, {"Tags": []string{"a"}}, {"Device": (*string)(nil)}, {"Score": "1.5"},
		} {
			n, err := count(f)
			if n != 0 || err == nil {
				t.Errorf("%d %v: got %d, %v", i, f, n, err)
			}
			wantErr(t, "value", err, gormsessions.ErrInvalidValue)
		}
		_, err = rich.Revoke(e.ctx, "x", gormsessions.Where(gormsessions.Fields{"device": 0}))
		wantErr(t, "Revoke", err, gormsessions.ErrInvalidValue)
		want(t, "revoked", func() int64 { n, _ := rich.Count(e.ctx, gormsessions.Revoked); return n }(), 0)
	})
}

// Able has abilities, embedded.
type Able struct {
	gormsessions.Session[User, uint]
	gormsessions.Abilities
	Name string
}

func (s suite) abilities(t *testing.T) {
	e := s.start(t, gormsessions.Config{})
	keys := gormsessions.New[Able](gormsessions.Config{})
	must(t, e.db.Use(keys))
	made := map[string]*Able{}
	for name, granted := range map[string]gormsessions.Abilities{
		"none": nil, "empty": {}, "write": {"posts:read", "posts:write"}, "posts": {"posts:*"}, "all": {"*"}, "other": {"users:write", "posts:comments:*"},
	} {
		v := &Able{Name: name, Abilities: granted}
		v.OwnerID = e.user.ID
		must(t, keys.Create(e.ctx, v))
		made[name] = v
	}
	for _, ability := range []string{"posts:write", "posts:read", "posts:comments:write", "users:write", "users", "x", "posts:*", "*"} {
		list, err := keys.List(e.ctx, gormsessions.WithAbility(ability), gormsessions.Active)
		must(t, err)
		found := map[string]bool{}
		for i := range list {
			found[list[i].Name] = true
			want(t, list[i].Name+" can "+ability, list[i].Can(ability), true)
		}
		for name, v := range made {
			got, err := keys.Authenticate(e.ctx, string(v.Token))
			must(t, err)
			want(t, name+" is listed for "+ability, found[name], got.Can(ability))
		}
	}
	n, err := keys.Count(e.ctx, func(db *gorm.DB) *gorm.DB {
		return db.Not(e.db.Model(&Able{}).Scopes(gormsessions.WithAbility("posts:write")))
	})
	must(t, err)
	want(t, "that cannot write posts", n, 3)
	for _, bad := range []string{"", "Posts:write", "posts write", "posts:", ":write", "*:write", "posts:*:x", "a'b", "\x00", `a"b`, "pösts", strings.Repeat("a", 256)} {
		v := &Able{Abilities: gormsessions.Abilities{"ok", bad}}
		v.OwnerID = e.user.ID
		wantErr(t, "create with "+bad, keys.Create(e.ctx, v), gormsessions.ErrInvalidValue)
		want(t, "token", string(v.Token), "")
		wantErr(t, "update to "+bad, e.db.Model(made["none"]).Update("abilities", gormsessions.Abilities{bad}).Error, gormsessions.ErrInvalidValue)
		_, err := keys.Count(e.ctx, gormsessions.WithAbility(bad))
		wantErr(t, "WithAbility "+bad, err, gormsessions.ErrInvalidValue)
	}
	s.abilityUpdates(t, e, keys)
	torn := gormsessions.New[Torn](gormsessions.Config{})
	must(t, e.db.Use(torn))
	_, err = torn.Count(e.ctx, gormsessions.WithAbility("posts:write"))
	wantErr(t, "a model with two", err, gormsessions.ErrNotModel)
	_, err = e.sessions.Count(e.ctx, gormsessions.WithAbility("posts:write"))
	wantErr(t, "a model without abilities", err, gormsessions.ErrNotModel)
	must(t, e.db.Model(made["none"]).Update("abilities", gormsessions.Abilities{"users:read"}).Error)
	got, err := keys.Get(e.ctx, gormsessions.WithAbility("users:read"), gormsessions.WithID(made["none"].ID))
	must(t, err)
	want(t, "updated", len(got.Abilities) == 1 && got.Can("users:read"), true)
	want(t, "an extra field", keys.ExtraFields()[0].Name, "Abilities")
}

// abilityUpdates shows that an update stores a list of abilities, whatever it is given
// for one, or is refused.
func (s suite) abilityUpdates(t *testing.T, e *env, keys *gormsessions.Plugin[Able]) {
	type patch struct{ Abilities string }
	update := func(value any) map[string]func(*Able) error {
		doors := map[string]func(*Able) error{
			"Update":       func(v *Able) error { return e.db.Model(v).Update("Abilities", value).Error },
			"UpdateColumn": func(v *Able) error { return e.db.Model(v).UpdateColumn("abilities", value).Error },
			"Updates":      func(v *Able) error { return e.db.Model(v).Updates(map[string]any{"abilities": value}).Error },
			"generics": func(v *Able) error {
				_, err := gorm.G[Able](e.db).Where("id = ?", v.ID).Update(e.ctx, "abilities", value)
				return err
			},
			"generics' Set": func(v *Able) error {
				_, err := gorm.G[Able](e.db).Where("id = ?", v.ID).Set(clause.Assignment{Column: clause.Column{Name: "abilities"}, Value: value}).Update(e.ctx)
				return err
			},
		}
		switch value := value.(type) {
		case gormsessions.Abilities:
			doors["struct"] = func(v *Able) error { return e.db.Model(v).Select("Abilities").Updates(&Able{Abilities: value}).Error }
			doors["Save"] = func(v *Able) error { v.Abilities = value; return e.db.Save(v).Error }
		case string:
			doors["another struct"] = func(v *Able) error { return e.db.Model(v).Updates(patch{value}).Error }
		}
		return doors
	}
	v := &Able{Name: "updated"}
	v.OwnerID = e.user.ID
	must(t, keys.Create(e.ctx, v))
	for _, value := range []any{
		gormsessions.Abilities{"Posts:Write"}, []string{"Posts:Write"}, []string{"posts:write", ""}, []any{"posts write"}, []any{"posts:write", 7}, &[]string{"*:write"},
		`["Posts:Write"]`, `["posts:write"`, "posts:write", "*", `{"a":"posts:write"}`, []byte(`["posts:"]`), []byte("*"), json.RawMessage(`"*"`), true, 7,
	} {
		for name, door := range update(value) {
			wantErr(t, fmt.Sprintf("%s of %T %v", name, value, value), door(&Able{Session: v.Session}), gormsessions.ErrInvalidValue)
		}
	}
	got, err := keys.Authenticate(e.ctx, string(v.Token))
	must(t, err)
	want(t, "as it was", len(got.Abilities), 0)
	for _, value := range []any{
		gormsessions.Abilities{"posts:write", "a"}, []string{"posts:write", "a"}, []any{"posts:write", "a"}, &[]string{"posts:write", "a"},
		`["posts:write", "a"]`, []byte(`["posts:write","a"]`), nil, []string{}, "[]", gormsessions.Abilities(nil), (*gormsessions.Abilities)(nil),
	} {
		for name, door := range update(value) {
			what := fmt.Sprintf("%s of %T %v", name, value, value)
			must(t, e.db.Model(v).Update("abilities", gormsessions.Abilities{"users:read"}).Error)
			if err := door(&Able{Session: v.Session}); err != nil {
				t.Errorf("%s: %v", what, err)
				continue
			}
			got, err := keys.Authenticate(e.ctx, string(v.Token))
			must(t, err)
			granted := strings.Contains(fmt.Sprintf("%s", value), "posts:write")
			want(t, what, got.Can("posts:write") && got.Can("a"), granted)
			want(t, what+": the one before", got.Can("users:read"), false)
			n, err := keys.Count(e.ctx, gormsessions.WithAbility("a"), gormsessions.WithID(v.ID))
			must(t, err)
			want(t, what+": listed", n == 1, granted)
			n, err = keys.Count(e.ctx, gormsessions.WithID(v.ID), func(db *gorm.DB) *gorm.DB { return db.Where("abilities IS NULL") })
			must(t, err)
			want(t, what+": NULL", n, 0)
		}
	}
	// SQL of the application's own may say more.
	must(t, e.db.Model(v).Update("abilities", gorm.Expr("?", `["users:read"]`)).Error)
	got, err = keys.Authenticate(e.ctx, string(v.Token))
	must(t, err)
	want(t, "by an expression", got.Can("users:read"), true)

	// What SQL has broken of one key is not granted, and keeps no other from being found.
	if e.db.Name() == "sqlite" { // the others' columns are JSON, and nothing else
		all := e.db.Model(&Able{}).Scopes(gormsessions.WithAbility("posts:write"))
		var before, after int64
		must(t, all.Session(&gorm.Session{}).Count(&before).Error)
		must(t, e.db.Exec("UPDATE "+tableOf(t, e.db, v)+" SET abilities = 'posts:write' WHERE id = ?", v.ID).Error)
		must(t, e.db.Model(&Able{}).Scopes(gormsessions.WithAbility("posts:write")).Count(&after).Error)
		want(t, "found beside a broken one", after, before)
		if _, err := keys.Authenticate(e.ctx, string(v.Token)); err == nil {
			t.Error("a key with broken abilities is accepted")
		}
	}
	must(t, e.db.Delete(v).Error)
	wantText(t, "a serializer", e.db.Use(gormsessions.New[Serialized](gormsessions.Config{})), "Serialized.Grants", "serializer")
}

// Torn has abilities twice: no scope can tell which are meant.
type Torn struct {
	gormsessions.Session[User, uint]
	Reads, Writes gormsessions.Abilities
}

// Serialized gives its abilities a serializer, which knows no malformed ones.
type Serialized struct {
	gormsessions.Session[User, uint]
	Grants gormsessions.Abilities `gorm:"serializer:json"`
}

// stored shows what comes back of what the application keeps.
func (s suite) stored(t *testing.T) {
	e := s.start(t, gormsessions.Config{})
	t.Run("Data", func(t *testing.T) {
		text := make([]byte, 1<<20)
		for i := range text {
			text[i] = byte('a' + i%26)
		}
		data := datatypes.JSONMap{
			"int": json.Number("9007199254740993"), "float": json.Number("0.1"), "neg": json.Number("-5"), "text": "żółć 日本 🙂 \u2028 ' \" \\ `; -- ?",
			"nested": map[string]any{"list": []any{json.Number("1"), "two", nil, true, map[string]any{}}}, "empty": "", "null": nil, "big": string(text),
			"replacement": "\ufffd", "escaped": `\u0000 \ufffd`, "?": "@name",
		}
		v := e.sign(func(u *UserSession) { u.Data = data })
		for _, got := range []*UserSession{e.row(v.ID), e.authenticate(v)} {
			if !reflect.DeepEqual(got.Data, data) {
				for k := range data {
					if !reflect.DeepEqual(got.Data[k], data[k]) {
						t.Errorf("Data[%q]: got %.100v, want %.100v", k, got.Data[k], data[k])
					}
				}
			}
		}
		v.Data["int"] = json.Number("2")
		must(t, e.db.Model(v).Update("Data", v.Data).Error)
		want(t, "updated", e.row(v.ID).Data["int"], any(json.Number("2")))
		found, err := e.sessions.Count(e.ctx, func(db *gorm.DB) *gorm.DB {
			return db.Where(datatypes.JSONQuery("data").Equals("two", "nested2")).Or(datatypes.JSONQuery("data").HasKey("nested", "list"))
		})
		must(t, err)
		want(t, "JSONQuery", found, 1)
	})

	t.Run("NilDataIsAnObject", func(t *testing.T) {
		asText := func(v *UserSession) (text string) {
			t.Helper()
			must(t, e.db.Raw("SELECT data FROM "+tableOf(t, e.db, v)+" WHERE id = ?", v.ID).Row().Scan(&text))
			return text
		}
		v := e.sign()
		want(t, "on create", asText(v), "{}")
		want(t, "on the value", v.Data != nil, true)
		v.Data = nil
		must(t, e.db.Save(v).Error)
		want(t, "on Save", asText(v), "{}")
		v.Data = datatypes.JSONMap{"a": "b"}
		must(t, e.db.Save(v).Error)
		must(t, e.db.Model(v).Update("data", nil).Error)
		want(t, "on Update", asText(v), "{}")
		must(t, e.db.Model(v).Updates(map[string]any{"Data": datatypes.JSONMap(nil)}).Error)
		want(t, "on Updates", asText(v), "{}")
	})

	t.Run("R46_WhatCannotBeStored", func(t *testing.T) {
		v := func(edit func(*UserSession)) *UserSession {
			v := &UserSession{}
			v.OwnerID = e.user.ID
			edit(v)
			return v
		}
		before := e.count()
		for name, bad := range map[string]func(*UserSession){
			"NUL in a field":    func(u *UserSession) { u.Device = "a\x00b" },
			"NUL in a pointer":  func(u *UserSession) { u.Nick = ptr("\x00") },
			"UTF-8 in a field":  func(u *UserSession) { u.Device = "\xff" },
			"NUL in Data":       func(u *UserSession) { u.Data = datatypes.JSONMap{"a": "\x00"} },
			"NUL in a key":      func(u *UserSession) { u.Data = datatypes.JSONMap{"\x00": "a"} },
			"NUL deep in Data":  func(u *UserSession) { u.Data = datatypes.JSONMap{"a": []any{map[string]any{"b": "\x00"}}} },
			"UTF-8 in Data":     func(u *UserSession) { u.Data = datatypes.JSONMap{"a": "\xc3\x28"} },
			"no JSON":           func(u *UserSession) { u.Data = datatypes.JSONMap{"a": func() {}} },
			"NaN":               func(u *UserSession) { u.Data = datatypes.JSONMap{"a": math.NaN()} },
			"NUL in the reason": func(u *UserSession) { u.RevokedReason = "\x00" },
			"year 10000":        func(u *UserSession) { u.ExpiresAt = ptr(time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)) },
			"year 0":            func(u *UserSession) { u.Deadline = &time.Time{} },
			"a foreign token":   func(u *UserSession) { u.Token = "x" },
		} {
			statements := e.log.since(func() {
				wantErr(t, name, e.db.Create(v(bad)).Error, gormsessions.ErrInvalidValue)
			})
			want(t, name+": statements", len(statements), 0)
		}
		want(t, "stored", e.count(), before)
		session := e.sign()
		wantErr(t, "Update NUL", e.db.Model(session).Update("device", "\x00").Error, gormsessions.ErrInvalidValue)
		wantErr(t, "Update Data", e.db.Model(session).Update("Data", datatypes.JSONMap{"a": "\x00"}).Error, gormsessions.ErrInvalidValue)
		session.Device = "\xff"
		wantErr(t, "Save", e.db.Save(session).Error, gormsessions.ErrInvalidValue)
		want(t, "unchanged", e.row(session.ID).Device, "Firefox")

		big := make([]byte, 4<<20)
		for i := range big {
			big[i] = 'x'
		}
		large := e.sign(func(u *UserSession) { u.Data = datatypes.JSONMap{"a": string(big)} })
		want(t, "4 MB", e.row(large.ID).Data["a"] == any(string(big)), true)
	})
}
