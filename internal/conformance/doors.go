package conformance

import (
	"errors"
	"regexp"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/gormsessions/gormsessions"
	"gorm.io/datatypes"
	"gorm.io/gorm"
	"gorm.io/gorm/clause"
)

// Hooked has a BeforeCreate of its own, which shadows any that an embedded
// struct could have.
type Hooked struct {
	gormsessions.Session[User, uint]
	Note string
}

var errHook = errors.New("refused by the application's hook")

func (h *Hooked) BeforeCreate(*gorm.DB) error {
	if h.Note == "refuse" {
		return errHook
	}
	h.Note = "hooked"
	return nil
}

// Staff may fail after its sessions are stored.
type (
	Team struct {
		ID    uint
		Staff []*Staff
	}
	Staff struct {
		ID       uint
		TeamID   *uint
		Fail     bool            `gorm:"-"`
		Sessions []*StaffSession `gorm:"foreignKey:OwnerID"`
	}
	StaffSession struct {
		gormsessions.Session[Staff, uint]
	}
)

func (s *Staff) AfterSave(*gorm.DB) error {
	if s.Fail {
		return errHook
	}
	return nil
}

type (
	mixinA struct{ A string }
	mixinB struct{ B string }
)

func (*mixinA) BeforeCreate(*gorm.DB) error { return nil }
func (*mixinB) BeforeCreate(*gorm.DB) error { return nil }

// Doubly embeds two structs with hooks, which cancel each other.
type Doubly struct {
	gormsessions.Session[User, uint]
	mixinA
	mixinB
}

// Prefixed embeds the session with a prefix.
type Prefixed struct {
	gormsessions.Session[User, uint] `gorm:"embeddedPrefix:s_"`
	Note                             string
}

// Named holds the session in a named field, with a prefix.
type Named struct {
	Login gormsessions.Session[User, uint] `gorm:"embedded;embeddedPrefix:login_"`
	Audit struct {
		CreatedAt int
		OwnerID   string
	} `gorm:"embedded;embeddedPrefix:audit_"`
	Note string
}

func (n *Named) SessionBase() *gormsessions.Base { return &n.Login.Base }

// Shares has fields of the same names as the session's.
type Shares struct {
	S         gormsessions.Session[User, uint] `gorm:"embedded;embeddedPrefix:x_"`
	RevokedAt *time.Time
	OwnerID   uint
}

func (s *Shares) SessionBase() *gormsessions.Base { return &s.S.Base }

type SharesOther struct {
	XRevokedAt, XExpiresAt *time.Time
	XOwnerID               uint
}

// External has owners of another system, by their keys.
type External struct {
	gormsessions.Base
	OwnerID string `gorm:"size:100;index"`
}

// Guest has no owner.
type Guest struct {
	gormsessions.Base
	Cart string
}

// Trash can be soft-deleted.
type Trash struct {
	gormsessions.Session[User, uint]
	DeletedAt gorm.DeletedAt
}

// door checks that a model's sessions are stored with a digest that finds them.
func door[T any, P interface {
	*T
	gormsessions.Model
}](s suite, t *testing.T, prepare func(*T, User)) {
	t.Helper()
	db, _, c, log := s.open(t)
	e := &env{t: t, ctx: t.Context(), db: db, clock: c, log: log}
	must(t, db.AutoMigrate(&User{}))
	e.user = e.newUser("ada")
	sessions := gormsessions.New[T, P](gormsessions.Config{})
	must(t, db.Use(sessions))
	found := func(name string, values ...P) {
		t.Helper()
		for _, v := range values {
			base := v.SessionBase()
			if base.Token == "" || len(base.TokenDigest) == 0 || base.ID == uuid.Nil {
				t.Errorf("%s: the value has no token, digest or ID", name)
				continue
			}
			got, err := sessions.Authenticate(e.ctx, string(base.Token))
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			want(t, name, P(got).SessionBase().ID, base.ID)
		}
	}
	make := func() P {
		v := new(T)
		prepare(v, e.user)
		return v
	}
	v := make()
	must(t, e.db.Create(v).Error)
	found("struct", v)
	v = make()
	must(t, sessions.Create(e.ctx, v))
	found("Plugin.Create", v)
	v = make()
	pointer := &v
	must(t, e.db.Create(pointer).Error)
	found("pointer to pointer", v)
	slice := []T{*make(), *make(), *make()}
	must(t, e.db.Create(&slice).Error)
	found("slice", &slice[0], &slice[1], &slice[2])
	pointers := []P{make(), make()}
	must(t, e.db.Create(pointers).Error)
	found("slice of pointers", pointers...)
	if e.db.CreateBatchSize == 0 { // GORM itself panics on an array in batches
		array := [2]T{*make(), *make()}
		must(t, e.db.Create(&array).Error)
		found("array", &array[0], &array[1])
	}
	slice = []T{*make(), *make(), *make()}
	must(t, e.db.CreateInBatches(&slice, 2).Error)
	found("CreateInBatches", &slice[0], &slice[1], &slice[2])
	v = make()
	must(t, gorm.G[T](e.db).Create(e.ctx, v))
	found("generics", v)
	slice = []T{*make(), *make(), *make()}
	must(t, gorm.G[T](e.db).CreateInBatches(e.ctx, &slice, 2))
	found("generics in batches", &slice[0], &slice[1], &slice[2])
	v = make()
	must(t, e.db.Session(&gorm.Session{SkipHooks: true}).Create(v).Error)
	found("SkipHooks", v)
	v = make()
	must(t, e.db.Save(v).Error)
	found("Save of a new value", v)
	v = make()
	must(t, e.db.Where("1 = 0").FirstOrCreate(v).Error)
	found("FirstOrCreate", v)
	v = make()
	must(t, e.db.Transaction(func(tx *gorm.DB) error {
		return tx.Transaction(func(tx *gorm.DB) error { return tx.Create(v).Error })
	}))
	found("nested transaction", v)
	v = make()
	must(t, e.db.Table(tableOf(t, e.db, v)).Create(v).Error)
	found("Table", v)

	var empty int64
	must(t, e.db.Model(new(T)).Where("1 = 1").Count(&empty).Error)
	if empty < 20 {
		t.Errorf("%d sessions stored, the doors made more", empty)
	}
}

func (s suite) doors(t *testing.T) {
	t.Run("R25_EveryDoor", func(t *testing.T) {
		t.Run("UserSession", func(t *testing.T) { door[UserSession](s, t, func(v *UserSession, u User) { v.OwnerID = u.ID }) })
		t.Run("by owner", func(t *testing.T) { door[UserSession](s, t, func(v *UserSession, u User) { v.Owner = &u }) })
		t.Run("own hook", func(t *testing.T) { door[Hooked](s, t, func(v *Hooked, u User) { v.OwnerID = u.ID }) })
		t.Run("two hooks", func(t *testing.T) { door[Doubly](s, t, func(v *Doubly, u User) { v.OwnerID = u.ID }) })
		t.Run("prefix", func(t *testing.T) { door[Prefixed](s, t, func(v *Prefixed, u User) { v.OwnerID = u.ID }) })
		t.Run("named field with prefix", func(t *testing.T) { door[Named](s, t, func(v *Named, u User) { v.Login.OwnerID = u.ID }) })
		t.Run("no owner", func(t *testing.T) { door[Guest](s, t, func(*Guest, User) {}) })
		t.Run("soft deletion", func(t *testing.T) { door[Trash](s, t, func(v *Trash, u User) { v.OwnerID = u.ID }) })
	})

	t.Run("R25_Associations", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		user := User{Name: "eve", Sessions: []UserSession{{Device: "a"}, {Device: "b"}}}
		must(t, e.db.Create(&user).Error)
		for i := range user.Sessions {
			got := e.authenticate(&user.Sessions[i], gormsessions.WithOwner)
			want(t, "owner", got.Owner.ID, user.ID)
			want(t, "device", got.Device, user.Sessions[i].Device)
		}
		// A loaded one beside a new one: the first is left as it is stored.
		var loaded User
		must(t, e.db.Preload("Sessions").First(&loaded, user.ID).Error)
		want(t, "loaded", len(loaded.Sessions), 2)
		loaded.Name = "eva"
		loaded.Sessions[0].Device = "not saved"
		loaded.Sessions = append(loaded.Sessions, UserSession{Device: "c"})
		must(t, e.db.Save(&loaded).Error)
		e.authenticate(&loaded.Sessions[2])
		e.authenticate(&user.Sessions[0])
		e.authenticate(&user.Sessions[1])
		want(t, "sessions", e.count(gormsessions.ForUser(&user)), 3)
		want(t, "loaded ones keep no token", string(loaded.Sessions[0].Token), "")
		want(t, "unsaved change", e.row(user.Sessions[0].ID).Device == "not saved", false)
		var name string
		must(t, e.db.Model(&User{}).Where("id = ?", user.ID).Pluck("name", &name).Error)
		want(t, "the owner is saved", name, "eva")
		// All loaded, none new.
		must(t, e.db.Save(&loaded).Error)
		want(t, "sessions", e.count(gormsessions.ForUser(&user)), 3)

		full := e.db.Session(&gorm.Session{FullSaveAssociations: true})
		must(t, full.Save(&loaded).Error)
		for i := range loaded.Sessions {
			want(t, "with FullSaveAssociations, changes of the application's columns", e.row(loaded.Sessions[i].ID).Device, loaded.Sessions[i].Device)
		}
		e.authenticate(&user.Sessions[0])

		var partly User
		must(t, e.db.Preload("Sessions", func(db *gorm.DB) *gorm.DB { return db.Select("id", "owner_id", "device") }).First(&partly, user.ID).Error)
		must(t, e.db.Model(&partly).Update("name", "evi").Error)
		must(t, full.Save(&partly).Error)
		e.authenticate(&user.Sessions[0])
		want(t, "sessions", e.count(gormsessions.ForUser(&user)), 3)

		added := UserSession{Device: "d"}
		must(t, e.db.Model(&user).Association("Sessions").Append(&added))
		e.authenticate(&added)
		slice := []User{{Name: "x", Sessions: []UserSession{{}}}, {Name: "y", Sessions: []UserSession{{}, {}}}}
		must(t, e.db.Create(&slice).Error)
		e.authenticate(&slice[1].Sessions[1])
		want(t, "of two users", e.count(gormsessions.ForUser(&slice[1])), 2)
	})

	t.Run("R25_FailsClosed", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		v := func() *UserSession {
			v := &UserSession{Device: "x"}
			v.OwnerID = e.user.ID
			return v
		}
		stored := e.sign()
		deleted := e.sign()
		must(t, e.db.Delete(deleted).Error)
		row := map[string]any{"owner_id": e.user.ID, "token_digest": []byte("0123456789abcdef")}
		for name, create := range map[string]func() error{
			"map":            func() error { return e.db.Model(&UserSession{}).Create(row).Error },
			"pointer to map": func() error { return e.db.Model(&UserSession{}).Create(&row).Error },
			"maps":           func() error { return e.db.Model(&UserSession{}).Create([]map[string]any{row, row}).Error },
			"generics Set": func() error {
				return gorm.G[UserSession](e.db).Set(clause.Assignment{Column: clause.Column{Name: "owner_id"}, Value: e.user.ID}).Create(e.ctx)
			},
			"Omit digest":     func() error { return e.db.Omit("TokenDigest").Create(v()).Error },
			"Omit id":         func() error { return e.db.Omit("id").Create(v()).Error },
			"Omit expiry":     func() error { return e.db.Omit("expires_at").Create(v()).Error },
			"Omit owner":      func() error { return e.db.Omit("OwnerID").Create(v()).Error },
			"Select others":   func() error { return e.db.Select("Device", "OwnerID").Create(v()).Error },
			"OnConflict":      func() error { return e.db.Clauses(clause.OnConflict{DoNothing: true}).Create(v()).Error },
			"OnConflict all":  func() error { return e.db.Clauses(clause.OnConflict{UpdateAll: true}).Create(v()).Error },
			"Save of deleted": func() error { return e.db.Save(deleted).Error },
			"Save slice":      func() error { return e.db.Save([]*UserSession{v()}).Error },
			"created before":  func() error { return e.db.Create(stored).Error },
			"twice in a slice": func() error {
				one := v()
				return e.db.Create([]*UserSession{one, one}).Error
			},
			"not addressable": func() error { return e.db.Create(*v()).Error },
			"another model":   func() error { return e.db.Model(&UserSession{}).Create(&Key{Session: v().Session}).Error },
			"another struct":  func() error { return e.db.Model(&UserSession{}).Create(&User{}).Error },
			"a struct around it": func() error {
				return e.db.Table(tableOf(t, e.db, &UserSession{})).Create(&Wrapped{*v()}).Error
			},
			"any":              func() error { return e.db.Model(&UserSession{}).Create([]any{v()}).Error },
			"slice of slices":  func() error { return e.db.Model(&UserSession{}).Create([][]UserSession{{*v()}}).Error },
			"pointers to maps": func() error { return e.db.Model(&UserSession{}).Create([]*map[string]any{&row}).Error },
			"INSERT modifier":  func() error { return e.db.Clauses(clause.Insert{Modifier: "IGNORE"}).Create(v()).Error },
		} {
			err := create()
			wantErr(t, name, err, gormsessions.ErrUnsafeCreate)
			want(t, name+": stored", e.count(), 1)
		}
		wantErr(t, "nil in a slice", e.db.Create([]*UserSession{v(), nil}).Error, gormsessions.ErrInvalidValue)
		wantErr(t, "Create(nil)", e.sessions.Create(e.ctx, nil), gormsessions.ErrInvalidValue)
		_ = e.db.Create(&[]UserSession{}).Error
		want(t, "stored", e.count(), 1)
		// Control: a harmless Omit is let through.
		must(t, e.db.Omit("Device").Create(v()).Error)
		must(t, e.db.Omit(clause.Associations).Create(v()).Error)
		want(t, "stored", e.count(), 3)
	})

	t.Run("R26_NoTokenWithoutASession", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		bare := func(name string, v *UserSession) {
			t.Helper()
			if v.Token != "" || len(v.TokenDigest) != 0 || v.ID != uuid.Nil || v.ExpiresAt != nil || v.Data != nil || !v.CreatedAt.IsZero() {
				t.Errorf("%s: the value was left filled in: %+v", name, v)
			}
		}
		v := &UserSession{}
		v.OwnerID = e.user.ID
		tx := e.db.Session(&gorm.Session{DryRun: true}).Create(v)
		must(t, tx.Error)
		bare("DryRun", v)
		if tx.Statement.SQL.Len() == 0 {
			t.Error("the dry run built no statement")
		}
		v.OwnerID = 4711 // no such user: the foreign key refuses
		if e.db.Create(v).Error == nil {
			t.Error("a session of nobody was stored")
		}
		bare("foreign key", v)
		list := []UserSession{{}, {}}
		list[0].OwnerID = e.user.ID
		if e.db.Create(&list).Error == nil {
			t.Error("a session without an owner was stored")
		}
		bare("slice", &list[0])
		bare("slice", &list[1])
		want(t, "stored", e.count(), 0)

		// The owner that the hook found is put back too.
		byOwner := &UserSession{}
		byOwner.Owner, byOwner.IdleTimeout = &e.user, -1
		wantErr(t, "negative idle timeout", e.db.Create(byOwner).Error, gormsessions.ErrInvalidValue)
		want(t, "OwnerID", byOwner.OwnerID, 0)
		byOwner.IdleTimeout = 0
		must(t, e.db.Create(byOwner).Error)
		e.authenticate(byOwner)

		// Stored as the association of an owner that is rolled back.
		staffed := gormsessions.New[StaffSession](gormsessions.Config{})
		must(t, e.db.AutoMigrate(&Team{}, &Staff{}))
		must(t, e.db.Use(staffed))
		for name, create := range map[string]func(*Staff) error{
			"Create": func(u *Staff) error { return e.db.Create(u).Error },
			"slice":  func(u *Staff) error { return e.db.Create([]*Staff{u}).Error },
			"deeper": func(u *Staff) error { return e.db.Create(&Team{Staff: []*Staff{u}}).Error },
			"Save": func(u *Staff) error {
				stored := Staff{}
				must(t, e.db.Create(&stored).Error)
				stored.Fail, stored.Sessions = true, u.Sessions
				return e.db.Save(&stored).Error
			},
		} {
			u := &Staff{Fail: true, Sessions: []*StaffSession{{}, {}}}
			wantErr(t, name, create(u), errHook)
			for _, v := range u.Sessions {
				if s.Variant.Name == plain.Name && (v.Token != "" || len(v.TokenDigest) != 0 || v.ID != uuid.Nil) {
					t.Errorf("%s: a token was left: %+v", name, v)
				}
			}
			u.Fail, u.TeamID = false, nil // GORM leaves the keys of what is rolled back
			if s.Variant.Name == plain.Name {
				must(t, e.db.Create(u).Error)
				_, err := staffed.Authenticate(e.ctx, string(u.Sessions[1].Token))
				must(t, err)
			}
		}

		hooked := gormsessions.New[Hooked](gormsessions.Config{})
		must(t, e.db.Use(hooked))
		h := Hooked{Note: "refuse"}
		h.OwnerID = e.user.ID
		wantErr(t, "the application's hook", e.db.Create(&h).Error, errHook)
		want(t, "token", string(h.Token), "")
	})

	t.Run("TheOwnerIsOnlyRead", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		u := e.user
		u.Name = "changed in memory"
		v := &UserSession{}
		v.Owner = &u
		for name, db := range map[string]*gorm.DB{"create": e.db, "full": e.db.Session(&gorm.Session{FullSaveAssociations: true})} {
			statements := e.log.since(func() {
				one := *v
				must(t, db.Create(&one).Error)
				one.Device = "saved"
				must(t, db.Save(&one).Error)
				must(t, db.Model(&one).Updates(UserSession{Device: "again"}).Error)
				want(t, name, e.row(one.ID).Device, "again")
			})
			for _, sql := range statements {
				if regexp.MustCompile("(INSERT INTO|UPDATE) .?" + tableOf(t, e.db, &User{}) + "\\b").MatchString(sql) {
					t.Errorf("%s writes the owner: %s", name, sql)
				}
			}
			var stored User
			must(t, e.db.First(&stored, u.ID).Error)
			want(t, name, stored.Name, "ada")
		}
	})
}

func (s suite) guards(t *testing.T) {
	t.Run("R32_CallbackRemoved", func(t *testing.T) {
		for _, name := range []string{"before_create", "after_create"} {
			for _, how := range []string{"removed", "replaced"} {
				t.Run(name+" "+how, func(t *testing.T) {
					e := s.start(t, gormsessions.Config{})
					full := e.sessions.Name() + ":" + name
					if e.db.Callback().Create().Get(full) == nil {
						t.Fatalf("there is no callback %s: the test removes nothing", full)
					}
					if how == "removed" {
						must(t, e.db.Callback().Create().Remove(full))
					} else {
						must(t, e.db.Callback().Create().Replace(full, func(*gorm.DB) {}))
					}
					v := &UserSession{}
					v.OwnerID = e.user.ID
					wantErr(t, "create", e.db.Create(v).Error, gormsessions.ErrUnsafeCreate)
					wantErr(t, "Plugin.Create", e.sessions.Create(e.ctx, v), gormsessions.ErrUnsafeCreate)
					want(t, "stored", e.count(), 0)
				})
			}
		}
		e := s.start(t, gormsessions.Config{})
		must(t, e.db.Callback().Update().Remove(e.sessions.Name()+":before_update"))
		v := &UserSession{}
		v.OwnerID = e.user.ID
		wantErr(t, "create without the update guard", e.db.Create(v).Error, gormsessions.ErrUnsafeCreate)
	})

	t.Run("R32_WithoutTheCallbackNothingIsRevived", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		v := e.sign()
		loaded := e.row(v.ID)
		must(t, e.db.Callback().Create().Remove(e.sessions.Name()+":before_create"))
		must(t, e.db.Delete(&UserSession{}, "id = ?", v.ID).Error)
		for name, err := range map[string]error{
			"Save": e.db.Save(loaded).Error, "Create": e.db.Create(loaded).Error,
			"upsert": e.db.Clauses(clause.OnConflict{UpdateAll: true}).Create(loaded).Error,
		} {
			wantErr(t, name, err, gormsessions.ErrUnsafeCreate)
		}
		e.refused(v.Token)
	})

	t.Run("NamesThatTheApplicationShares", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		shares := gormsessions.New[Shares](gormsessions.Config{})
		must(t, e.db.Use(shares))
		eve := e.newUser("eve")
		v := &Shares{}
		v.S.OwnerID = e.user.ID
		must(t, e.db.Create(v).Error)
		_, err := shares.Revoke(e.ctx, "x", gormsessions.WithID(v.S.ID))
		must(t, err)
		for _, update := range []func() error{
			func() error { return e.db.Model(v).Updates(map[string]any{"x_revoked_at": nil}).Error },
			func() error {
				return e.db.Model(v).Updates(&map[string]any{"x_revoked_at": nil, "x_owner_id": eve.ID}).Error
			},
			func() error { return e.db.Model(v).Select("*").Updates(SharesOther{XOwnerID: eve.ID}).Error },
			func() error { v.S.RevokedAt, v.S.OwnerID = nil, eve.ID; return e.db.Save(v).Error },
		} {
			_ = update()
			_, err := shares.Authenticate(e.ctx, string(v.S.Token))
			want(t, "revoked", err, gormsessions.ErrNoSession)
			n, err := shares.Count(e.ctx, gormsessions.ForOwner(&eve))
			must(t, err)
			want(t, "eve's", n, 0)
		}
		must(t, e.db.Model(v).Update("owner_id", 7).Error)
		got, err := shares.Get(e.ctx, gormsessions.WithID(v.S.ID))
		must(t, err)
		want(t, "the application's own OwnerID", got.OwnerID, 7)
	})

	t.Run("SaveOfAnUnchangedSession", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		v := e.sign()
		for name, db := range map[string]*gorm.DB{"plain": e.db, "Omit": e.db.Omit("Data"), "Omit own": e.db.Omit("OwnerID")} {
			if err := db.Save(v).Error; err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		must(t, e.db.Save(*v).Error)
		e.authenticate(v)
		want(t, "sessions", e.count(), 1)
	})

	t.Run("ErrorsAreTheDatabases", func(t *testing.T) {
		db, _, _, _ := s.open(t)
		must(t, db.Use(gormsessions.New[Guest](gormsessions.Config{SkipMigrate: true})))
		must(t, db.Exec("CREATE TABLE "+tableOf(t, db, &Guest{})+" (id varchar(40))").Error)
		err := db.Create(&Guest{}).Error
		if err == nil || errors.Is(err, gorm.ErrDuplicatedKey) || errors.Is(err, gormsessions.ErrUnsafeCreate) {
			t.Errorf("a table without columns: got %v", err)
		}
	})

	t.Run("FirstOrCreate", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		for range 3 {
			v := &UserSession{}
			must(t, e.db.Scopes(gormsessions.ForUser(&e.user), gormsessions.Where(gormsessions.Fields{"Device": "d"})).FirstOrCreate(v).Error)
			want(t, "Device", v.Device, "d")
		}
		want(t, "sessions", e.count(), 1)
	})

	t.Run("UpdatesKeepData", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		v := e.sign(func(u *UserSession) { u.Data = datatypes.JSONMap{"cart": "full"} })
		must(t, e.db.Model(&UserSession{}).Where("id = ?", v.ID).Updates(&UserSession{Device: "y"}).Error)
		must(t, e.db.Model(&UserSession{}).Where("id = ?", v.ID).Updates(UserSession{Device: "z"}).Error)
		row := e.row(v.ID)
		want(t, "Device", row.Device, "z")
		want(t, "Data", row.Data["cart"], any("full"))
	})

	t.Run("BaseWithAnOwnerOfTheApplication", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		sessions := gormsessions.New[External](gormsessions.Config{})
		must(t, e.db.Use(sessions))
		for _, subject := range []string{"bob", "BOB", "bob ", "böb"} {
			must(t, e.db.Create(&External{OwnerID: subject}).Error)
		}
		n, err := sessions.Count(e.ctx, gormsessions.ForOwner("bob"))
		must(t, err)
		want(t, "bob's", n, 1)
		n, err = sessions.Count(e.ctx, gormsessions.ForOwner("böb"))
		must(t, err)
		want(t, "böb's", n, 1)
		_, err = sessions.Count(e.ctx, gormsessions.ForOwner("a\x00"))
		wantErr(t, "NUL", err, gormsessions.ErrWrongOwner)
		v, err := sessions.Get(e.ctx, gormsessions.ForOwner("BOB"))
		must(t, err)
		v.OwnerID = "eve"
		must(t, e.db.Save(v).Error)
		n, err = sessions.Count(e.ctx, gormsessions.ForOwner("eve"))
		must(t, err)
		want(t, "moved by Save", n, 0)
		wantErr(t, "moved by Update", e.db.Model(v).Update("owner_id", "eve").Error, gormsessions.ErrReadOnlyColumn)
		want(t, "an extra field all the same", len(sessions.ExtraFields()), 1)
	})

	t.Run("UpdatesOfOwnColumns", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		session := e.sign()
		must(t, e.db.Model(session).Update("Device", "Chrome").Error)
		must(t, e.db.Model(session).Updates(map[string]any{"visits": 3, "data": map[string]any(nil)}).Error)
		must(t, e.db.Scopes(gormsessions.Active).Model(&UserSession{}).Where("id = ?", session.ID).Update("nick", "n").Error)
		row := e.row(session.ID)
		want(t, "Device", row.Device, "Chrome")
		want(t, "Visits", row.Visits, 3)
		want(t, "Nick", *row.Nick, "n")
		for _, column := range []string{"expires_at", "ExpiresAt", "revoked_at", "token_digest", "id", "idle_timeout", "deadline", "owner_id", "OwnerID", "created_at"} {
			wantErr(t, "Update "+column, e.db.Model(&UserSession{}).Where("id = ?", session.ID).Update(column, nil).Error, gormsessions.ErrReadOnlyColumn)
		}
		wantErr(t, "WithOwner in Updates", e.db.Model(&UserSession{}).Scopes(gormsessions.WithOwner).Update("device", "x").Error, gormsessions.ErrInvalidValue)
		wantErr(t, "WithOwner in Delete", e.db.Scopes(gormsessions.WithOwner).Where("1 = 1").Delete(&UserSession{}).Error, gormsessions.ErrInvalidValue)
		want(t, "sessions", e.count(), 1)
	})

	t.Run("SoftDeletedSession", func(t *testing.T) {
		e := s.start(t, gormsessions.Config{})
		trash := gormsessions.New[Trash](gormsessions.Config{})
		must(t, e.db.Use(trash))
		v := &Trash{}
		v.OwnerID = e.user.ID
		must(t, e.db.Create(v).Error)
		must(t, e.db.Delete(v).Error)
		_, err := trash.Authenticate(e.ctx, string(v.Token))
		want(t, "soft-deleted", err, gormsessions.ErrNoSession)
		wantErr(t, "Extend", trash.Extend(e.ctx, v), gormsessions.ErrNoSession)
		_ = e.db.Save(v).Error
		_, err = trash.Authenticate(e.ctx, string(v.Token))
		want(t, "after Save", err, gormsessions.ErrNoSession)
		n, err := trash.Count(e.ctx, func(db *gorm.DB) *gorm.DB { return db.Unscoped() })
		must(t, err)
		want(t, "rows", n, 1)
		n, err = trash.Revoke(e.ctx, "everywhere", gormsessions.ForUser(&e.user))
		must(t, err)
		want(t, "revoked", n, 1)
		must(t, e.db.Unscoped().Model(v).Update("deleted_at", nil).Error)
		_, err = trash.Authenticate(e.ctx, string(v.Token))
		want(t, "restored after it was revoked", err, gormsessions.ErrNoSession)
	})
}
