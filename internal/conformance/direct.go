package conformance

import (
	"context"
	"crypto"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/gormsessions/gormsessions"
	"gorm.io/datatypes"
	"gorm.io/gorm"
	"gorm.io/gorm/callbacks"
	"gorm.io/gorm/clause"
	"gorm.io/gorm/schema"
)

// Named types of the basic kinds.
type (
	Level string
	Rank  int8
	Port  uint16
	Ratio float64
	Blob  []byte
	Twin  struct{ Left, Right string }
	Money int64
)

// Money is stored as text with its currency.
func (m Money) Value() (driver.Value, error) { return fmt.Sprintf("EUR %d", int64(m)), nil }
func (Money) GormDataType() string           { return "string" }

func (m *Money) Scan(src any) error {
	_, err := fmt.Sscanf(fmt.Sprintf("%s", src), "EUR %d", (*int64)(m))
	return err
}

// Upper is stored by SQL of its own.
type Upper string

func (u Upper) GormValue(context.Context, *gorm.DB) clause.Expr {
	return clause.Expr{SQL: "UPPER(?)", Vars: []any{string(u)}}
}

// Fuse is text that cannot always be read.
type Fuse string

func (f *Fuse) Scan(src any) error {
	*f = Fuse(fmt.Sprintf("%s", src))
	if *f == "error" {
		return errHook
	}
	return nil
}

// Bomb is its own serializer, and may explode.
type Bomb string

func (b *Bomb) Scan(_ context.Context, _ *schema.Field, _ reflect.Value, src any) error {
	if *b = Bomb(fmt.Sprintf("%s", src)); *b == "panic" {
		panic("a serializer of the application's")
	}
	return nil
}

func (Bomb) Value(_ context.Context, _ *schema.Field, _ reflect.Value, value any) (any, error) {
	return fmt.Sprint(value), nil
}

// Kinds has a field of each kind that GORM reads and writes.
type Kinds struct {
	Bool    bool
	Int     int
	Int8    int8
	Int16   int16
	Int32   int32
	Int64   int64
	Uint    uint
	Uint8   uint8
	Uint16  uint16
	Uint32  uint32
	Uint64  uint64
	Float32 float32
	Float64 float64
	String  string
	Bytes   []byte
	Time    time.Time
	Length  time.Duration

	PBool   *bool
	PInt    *int
	PInt8   *int8
	PUint64 *uint64
	PFloat  *float64
	PString *string
	PBytes  *[]byte
	PTime   *time.Time
	PLength *time.Duration

	Level  Level
	Rank   Rank
	Port   Port
	Ratio  Ratio
	Blob   Blob
	PLevel *Level
	PRank  *Rank
	Money  Money
	PMoney *Money
	Upper  Upper
	Fuse   Fuse

	NullString sql.NullString
	NullInt64  sql.NullInt64
	NullInt32  sql.NullInt32
	NullInt16  sql.NullInt16
	NullFloat  sql.NullFloat64
	NullBool   sql.NullBool
	NullTime   sql.NullTime
	PNull      *sql.NullString

	UUID      uuid.UUID  `gorm:"size:36"`
	PUUID     *uuid.UUID `gorm:"size:36"`
	JSON      datatypes.JSON
	Map       datatypes.JSONMap
	PMap      *datatypes.JSONMap
	Slice     datatypes.JSONSlice[string]
	Typed     datatypes.JSONType[Twin]
	Abilities gormsessions.Abilities

	List  []string `gorm:"serializer:json"`
	PTwin *Twin    `gorm:"serializer:json"`
	Gob   Twin     `gorm:"serializer:gob;type:bytes"`
	Unix  int32    `gorm:"serializer:unixtime;type:time"`

	Renamed  string `gorm:"column:odd name"`
	Values   string `gorm:"column:VALUES (0,0)"`
	Hidden   string `gorm:"->:false;<-:create"`
	ReadOnly string `gorm:"->"`
	Default  int    `gorm:"default:7"`
	Text     string `gorm:"default:'a b'"`

	MadeAt   int64     `gorm:"autoCreateTime:milli"`
	MadeNano int64     `gorm:"autoCreateTime:nano"`
	SeenAt   time.Time `gorm:"autoUpdateTime"`

	Note string `gorm:"-"` // filled in by hooks
}

// Maybe is embedded by a pointer.
type Maybe struct {
	Text   string
	Number int
	Flag   bool
	At     time.Time
	Null   sql.NullString
	UUID   uuid.UUID `gorm:"size:36"`
}

type (
	Tenant struct {
		Code      string `gorm:"primaryKey;size:20"`
		Kinds     `gorm:"embeddedPrefix:k_"`
		DeletedAt gorm.DeletedAt
		Extra     *Maybe `gorm:"embedded;embeddedPrefix:x_"`
	}
	Ample struct {
		gormsessions.Session[Tenant, string]
		Kinds
	}
	// Wide holds the session in a named field, and columns behind a pointer.
	Wide struct {
		Login     gormsessions.Session[Project, uuid.UUID] `gorm:"embedded;embeddedPrefix:login_"`
		DeletedAt gorm.DeletedAt
		More      *Maybe `gorm:"embedded;embeddedPrefix:more_"`
		Tag       *string
	}
	// Beside has its owner beside Base.
	Beside struct {
		gormsessions.Base
		OwnerID uint
		Owner   *User
		Level   Level
	}
	// Stamped has columns that the database fills in.
	Stamped struct {
		gormsessions.Session[User, uint]
		Two   int   `gorm:"default:(1+1)"`
		Money Money `gorm:"default:('EUR 5')"`
		Fuse  Fuse  `gorm:"type:varchar(20);default:('error')"`
	}
)

// Qualified names its table with the database's schema.
type (
	Qualified   struct{ gormsessions.Base }
	Unqualified struct{ gormsessions.Base }
)

func (Qualified) TableName() string   { return "main.qualified" }
func (Unqualified) TableName() string { return "qualified" }

func (w *Wide) SessionBase() *gormsessions.Base { return &w.Login.Base }

// AfterFind fills in what has no column, and fails when told.
func (r *Ample) AfterFind(tx *gorm.DB) error {
	if r.Level == "fail" {
		return errHook
	}
	r.Note = "found " + r.String + tx.Statement.Schema.Name
	return nil
}

// AfterCreate notes which way the row was written.
func (r *Ample) AfterCreate(tx *gorm.DB) error {
	r.Note = wayOf(tx, "VALUES")
	return nil
}

const (
	fixed = "a statement that was made before"
	built = "a statement that GORM built"
)

// wayOf tells by a clause that GORM's builder always makes whether it made the
// statement.
func wayOf(db *gorm.DB, name string) string {
	if _, ok := db.Statement.Clauses[name]; ok {
		return built
	}
	return fixed
}

// watch keeps the ways that queries went.
type watch struct{ ways []string }

func watchQueries(t *testing.T, db *gorm.DB) *watch {
	t.Helper()
	w := &watch{}
	must(t, db.Callback().Query().After("gorm:query").Register("watch", func(db *gorm.DB) { w.ways = append(w.ways, wayOf(db, "LIMIT")) }))
	return w
}

// way is that of the query that fn runs.
func (w *watch) way(t *testing.T, fn func()) string {
	t.Helper()
	w.ways = nil
	fn()
	if len(w.ways) != 1 {
		t.Fatalf("%d queries, want 1", len(w.ways))
	}
	return w.ways[0]
}

// byBuilder is a scope that adds nothing: it is not known to, so GORM builds the
// statement.
func byBuilder(db *gorm.DB) *gorm.DB { return db }

var (
	texts    = []string{"", "a", "Zażółć 🔑 gęślą", "'quoted\" `text`\\", "  \n\t", "<b>&amp;</b>", "0", "NULL", "{}", strings.Repeat("ń", 90)}
	sqlNulls = reflect.TypeFor[sql.NullString]().PkgPath()
)

// fill makes a value that every database can store.
func fill(r *rand.Rand, v reflect.Value) {
	text := func() string { return texts[r.IntN(len(texts))] }
	if r.IntN(6) == 0 && v.Kind() != reflect.Struct {
		return // zero
	}
	switch p := v.Addr().Interface().(type) {
	case *time.Time:
		*p = time.Date(1971+r.IntN(60), 5, 1+r.IntN(28), r.IntN(24), r.IntN(60), r.IntN(60), 0, time.UTC)
		return
	case *gorm.DeletedAt:
		return
	case *datatypes.JSON:
		*p = datatypes.JSON(`{"a": [1, null, "ż", {"b": -1.5}]}`)
		return
	case *datatypes.JSONMap:
		*p = datatypes.JSONMap{"text": text(), "nested": map[string]any{"list": []any{true, nil, "x"}, "n": r.IntN(1000)}}
		return
	case *datatypes.JSONType[Twin]:
		*p = datatypes.NewJSONType(Twin{text(), text()})
		return
	case *gormsessions.Abilities:
		*p = gormsessions.Abilities{"posts:write", "users:*"}
		return
	case *Fuse:
		*p = "whole"
		return
	case *Upper:
		*p = "Upper"
		return
	}
	if v.Type().PkgPath() == sqlNulls && v.Kind() == reflect.Struct {
		if r.IntN(3) > 0 {
			fill(r, v.Field(0))
			v.FieldByName("Valid").SetBool(true)
		}
		return
	}
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		high := int64(1)<<(v.Type().Bits()-1) - 1
		v.SetInt([]int64{-1, 1, high, -high - 1, high / 3, -high / 7}[r.IntN(6)])
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		high := uint64(math.MaxInt64)
		if bits := v.Type().Bits(); bits < 64 {
			high = 1<<bits - 1
		}
		v.SetUint([]uint64{1, high, high / 3}[r.IntN(3)])
	case reflect.Float32, reflect.Float64:
		v.SetFloat([]float64{-1.5, 0.1, 1e30, -1e-30, 16777217}[r.IntN(5)])
	case reflect.String:
		v.SetString(text())
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(r, v.Elem())
	case reflect.Slice:
		list := reflect.MakeSlice(v.Type(), r.IntN(6), 6)
		for i := range list.Len() {
			fill(r, list.Index(i))
		}
		v.Set(list)
	case reflect.Array:
		for i := range v.Len() {
			fill(r, v.Index(i))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			fill(r, v.Field(i))
		}
	}
	if d, ok := v.Addr().Interface().(*time.Duration); ok {
		*d = (*d).Abs()
	}
}

// nullable empties some of a row's columns, as other programs may.
func nullable(t *testing.T, db *gorm.DB, r *rand.Rand, id, model any, all bool) {
	t.Helper()
	stmt := &gorm.Statement{DB: db}
	must(t, stmt.Parse(model))
	key := stmt.Schema.PrioritizedPrimaryField.DBName
	set := map[string]any{}
	for _, name := range stmt.Schema.DBNames {
		f := stmt.Schema.FieldsByDBName[name]
		if !f.NotNull && !f.PrimaryKey && f.Name != "OwnerID" && f.DataType != "" && (all || r.IntN(3) == 0) {
			set[name] = nil
		}
	}
	if len(set) > 0 {
		must(t, db.Table(stmt.Schema.Table).Where(clause.Eq{Column: clause.Column{Name: key}, Value: id}).UpdateColumns(set).Error)
	}
}

func same[T any](t *testing.T, what string, got, wanted *T, gotErr, wantedErr error) {
	t.Helper()
	if !strings.HasPrefix(fmt.Sprint(wantedErr), fmt.Sprint(gotErr)) { // GORM goes on after one that failed
		t.Errorf("%s: got error %v, and from GORM's builder %v", what, gotErr, wantedErr)
	}
	for _, d := range differences(got, wanted) {
		t.Errorf("%s: %s", what, d)
	}
}

// differences are those of two values, by field.
func differences(got, wanted any) (list []string) {
	var walk func(path string, a, b reflect.Value)
	walk = func(path string, a, b reflect.Value) {
		if reflect.DeepEqual(a.Interface(), b.Interface()) {
			return
		}
		for a.Kind() == reflect.Pointer && !a.IsNil() && !b.IsNil() {
			a, b = a.Elem(), b.Elem()
		}
		if a.Kind() == reflect.Struct && a.NumField() > 0 && a.Type().Field(0).IsExported() {
			before := len(list)
			for i := range a.NumField() {
				walk(path+"."+a.Type().Field(i).Name, a.Field(i), b.Field(i))
			}
			if len(list) > before {
				return
			}
		}
		list = append(list, fmt.Sprintf("%s is %#v, and from GORM's builder %#v", path, a.Interface(), b.Interface()))
	}
	walk(reflect.TypeOf(got).Elem().Name(), reflect.ValueOf(got), reflect.ValueOf(wanted))
	return list
}

// bothWays checks over generated rows that both ways read the same.
func bothWays[T any, P interface {
	*T
	gormsessions.Model
}](s suite, t *testing.T, hasOwner bool, prepare func(*env, *rand.Rand, *T)) {
	t.Helper()
	db, dialect, c, log := s.open(t)
	e := &env{t: t, ctx: t.Context(), db: db, dialect: dialect, clock: c, log: log}
	must(t, db.AutoMigrate(&User{}))
	sessions := gormsessions.New[T, P](gormsessions.Config{})
	must(t, db.Use(sessions))
	w := watchQueries(t, db)
	r := rand.New(rand.NewPCG(1, 2))
	table := tableOf(t, db, new(T))

	var tokens []string
	var ids []uuid.UUID
	listed := 0
	for i := range 12 {
		v := new(T)
		prepare(e, r, v)
		base := P(v).SessionBase()
		base.Data = datatypes.JSONMap{"n": 1, "deep": map[string]any{"ż": []any{nil, 1.5, texts[r.IntN(len(texts))]}}}
		if i%3 == 0 {
			base.IdleTimeout = gormsessions.Never
		}
		must(t, db.Create(v).Error)
		nullable(t, db, r, base.ID, v, i == 0)
		tokens, ids = append(tokens, string(base.Token)), append(ids, base.ID)
	}
	// All that one way read is kept: nothing may change it later.
	type answer struct {
		session *T
		err     error
	}
	ask := func(wanted string, scopes ...gormsessions.Scope) (list []answer) {
		for _, token := range append(tokens, tokens[0][:len(tokens[0])-1]) {
			var a answer
			w.ways = nil
			a.session, a.err = sessions.Lookup(e.ctx, token, scopes...)
			for _, way := range w.ways[:min(1, len(w.ways))] {
				want(t, "a look-up went by", way, wanted)
			}
			list = append(list, a)
		}
		return list
	}
	// Where nobody else has a callback, statements are written and lists are scanned
	// in a shorter way.
	alone := gormsessions.New[T, P](gormsessions.Config{SkipMigrate: true})
	must(t, s.again(t, dialect, c, log).Use(alone))
	both := func(what string, scopes ...gormsessions.Scope) {
		t.Helper()
		got, wanted := ask(fixed, scopes...), ask(built, append(scopes, byBuilder)...)
		for i := range got {
			same(t, fmt.Sprintf("%s, row %d", what, i), got[i].session, wanted[i].session, got[i].err, wanted[i].err)
		}
		for i, token := range tokens {
			session, err := alone.Lookup(e.ctx, token, scopes...)
			same(t, fmt.Sprintf("%s, alone, row %d", what, i), session, wanted[i].session, err, wanted[i].err)
		}
		lists := [][]gormsessions.Scope{scopes, append(scopes, gormsessions.Active)}
		for _, id := range ids {
			lists = append(lists, append(scopes, gormsessions.WithID(id)))
		}
		for i, scopes := range lists {
			what := fmt.Sprintf("%s, list %d", what, i)
			got, gotErr := alone.List(e.ctx, scopes...)
			wanted, err := sessions.List(e.ctx, scopes...)
			want(t, what+" has the length", len(got), len(wanted))
			var none T
			same(t, what, &none, &none, gotErr, err)
			for i := range min(len(got), len(wanted)) {
				same(t, what, &got[i], &wanted[i], nil, nil)
			}
			listed += len(got)
		}
	}
	both("without owner")
	if hasOwner {
		both("with owner", gormsessions.WithOwner)
	}
	// Control: the comparison notices a row that is another.
	before := ask(fixed)
	must(t, db.Exec("UPDATE "+db.Statement.Quote(table)+" SET "+db.Statement.Quote(columnOf(t, db, new(T), "RevokedReason"))+" = 'altered'").Error)
	for i, a := range ask(fixed) {
		want(t, "an altered row differs", a.session == nil || len(differences(a.session, before[i].session)) > 0, true)
	}
	both("altered")
	want(t, "sessions were listed", listed > 0, true)
}

func columnOf(t testing.TB, db *gorm.DB, model any, field string) string {
	t.Helper()
	stmt := &gorm.Statement{DB: db}
	must(t, stmt.Parse(model))
	for _, f := range stmt.Schema.Fields {
		if f.Name == field && f.DBName != "" {
			return f.DBName
		}
	}
	t.Fatalf("no field %s", field)
	return ""
}

// kinds is a value with all its fields filled in.
func kinds(r *rand.Rand) (k Kinds) {
	fill(r, reflect.ValueOf(&k).Elem())
	k.Note = ""
	return k
}

func maybe(r *rand.Rand) *Maybe {
	if r.IntN(2) == 0 {
		return nil
	}
	m := &Maybe{}
	fill(r, reflect.ValueOf(m).Elem())
	return m
}

func (s suite) direct(t *testing.T) {
	t.Run("R28_DirectReadsTheSame", func(t *testing.T) {
		t.Run("every kind", func(t *testing.T) {
			bothWays(s, t, true, func(e *env, r *rand.Rand, v *Ample) {
				v.Owner, v.Kinds = &Tenant{Code: uuid.NewString()[:20], Kinds: kinds(r), Extra: maybe(r)}, kinds(r)
				must(e.t, e.db.Create(v.Owner).Error)
				nullable(e.t, e.db.Unscoped(), r, v.Owner.Code, v.Owner, false)
				switch r.IntN(5) {
				case 0:
					v.Level = "fail"
				case 1:
					must(e.t, e.db.Delete(v.Owner).Error)
				}
			})
		})
		t.Run("named and behind a pointer", func(t *testing.T) {
			bothWays(s, t, true, func(e *env, r *rand.Rand, v *Wide) {
				v.Login.Owner, v.More, v.Tag = &Project{ID: uuid.New()}, maybe(r), ptr("x")
				must(e.t, e.db.Create(v.Login.Owner).Error)
				v.DeletedAt.Valid = r.IntN(4) == 0
				v.DeletedAt.Time = e.clock.Now()
			})
		})
		t.Run("owner beside", func(t *testing.T) {
			bothWays(s, t, true, func(e *env, r *rand.Rand, v *Beside) {
				v.Owner = &User{Name: "ada"}
				must(e.t, e.db.Create(v.Owner).Error)
				v.Level = "x"
				if r.IntN(3) == 0 {
					must(e.t, e.db.Delete(v.Owner).Error)
				}
			})
		})
		t.Run("no owner", func(t *testing.T) {
			bothWays(s, t, false, func(_ *env, _ *rand.Rand, v *Guest) { v.Cart = "x" })
		})
	})

	t.Run("R28_DirectWritesTheSame", s.writesTheSame)
	if s.Database.Name == "sqlite" {
		t.Run("R28_DirectQualified", func(t *testing.T) {
			db, dialect, c, log := s.open(t)
			must(t, db.Use(gormsessions.New[Unqualified](gormsessions.Config{})))
			db = s.again(t, dialect, c, log)
			sessions := gormsessions.New[Qualified](gormsessions.Config{SkipMigrate: true}) // GORM makes no index of such a name
			must(t, db.Use(sessions))
			w := watchQueries(t, db)
			v := &Qualified{}
			must(t, sessions.Create(t.Context(), v))
			want(t, "the look-up went by", w.way(t, func() {
				_, err := sessions.Lookup(t.Context(), string(v.Token))
				must(t, err)
			}), fixed)
			_, err := sessions.Lookup(t.Context(), string(v.Token), byBuilder)
			must(t, err)
		})
	}
	t.Run("R28_DirectWith", s.directWith)
	t.Run("R28_DirectLists", s.directLists)
	t.Run("R28_DirectFails", s.directFails)
	if s.Variant.Name == plain.Name {
		t.Run("R28_DirectBesideOthers", s.otherPlugins)
	}
}

// writesTheSame: one value is written by both ways, and is the same row.
func (s suite) writesTheSame(t *testing.T) {
	db, _, _, _ := s.open(t)
	sessions := gormsessions.New[Ample](gormsessions.Config{})
	must(t, db.Use(sessions))
	wides := gormsessions.New[Wide](gormsessions.Config{})
	must(t, db.Use(wides))
	r := rand.New(rand.NewPCG(3, 4))
	tenant, project := Tenant{Code: "acme"}, Project{ID: uuid.New()}
	must(t, db.Create(&tenant).Error)
	must(t, db.Create(&project).Error)
	stored := func(model any, id uuid.UUID) map[string]any {
		// Not by GORM: it cannot scan every driver's bytes into a map.
		rows, err := db.Table(tableOf(t, db, model)).Where(clause.Eq{Column: clause.Column{Name: columnOf(t, db, model, "ID")}, Value: id}).Rows()
		must(t, err)
		defer rows.Close()
		names, err := rows.Columns()
		must(t, err)
		want(t, "there is a row", rows.Next(), true)
		values := make([]any, len(names))
		dests := make([]any, len(names))
		for i := range values {
			dests[i] = &values[i]
		}
		must(t, rows.Scan(dests...))
		row := map[string]any{}
		for i, name := range names {
			row[name] = values[i]
		}
		delete(row, columnOf(t, db, model, "ID"))
		delete(row, columnOf(t, db, model, "TokenDigest"))
		return row
	}
	for i := range 8 {
		v := Ample{}
		v.OwnerID = tenant.Code
		if i > 0 { // the first is all zeros
			v.Kinds = kinds(r)
		}
		one, other, plugins := v, []Ample{v}, v
		must(t, db.Create(&one).Error)
		must(t, db.Create(&other).Error)
		must(t, sessions.Create(t.Context(), &plugins))
		want(t, "Create goes by", one.Note, fixed)
		want(t, "Create of a slice goes by", other[0].Note, built)
		want(t, "Plugin.Create goes by", plugins.Note, fixed)
		wanted := stored(&v, other[0].ID)
		for what, row := range map[string]map[string]any{"Create": stored(&v, one.ID), "Plugin.Create": stored(&v, plugins.ID)} {
			for name := range wanted {
				if !reflect.DeepEqual(row[name], wanted[name]) {
					t.Errorf("%s %d stored %s as %v, and GORM's builder as %v", what, i, name, row[name], wanted[name])
				}
			}
		}
		one.Note, one.ID, one.Token, one.TokenDigest = other[0].Note, other[0].ID, other[0].Token, other[0].TokenDigest
		same(t, "the value after Create", &one, &other[0], nil, nil)

		w := Wide{More: maybe(r)}
		w.Login.OwnerID = project.ID
		a, b := w, []Wide{w}
		must(t, wides.Create(t.Context(), &a))
		must(t, db.Create(&b).Error)
		want(t, "a nil pointer stays nil", a.More == nil, w.More == nil)
		if got, wanted := stored(&w, a.Login.ID), stored(&w, b[0].Login.ID); !reflect.DeepEqual(got, wanted) {
			t.Errorf("got %v, want %v", got, wanted)
		}
	}
}

// finderKey is what an AfterFind of Probe does, in the context.
type finderKey struct{}

// Probe runs what its context holds when it is found, and when it is created.
type Probe struct {
	gormsessions.Session[User, uint]
	Tenant string
	Fuse   Fuse
	Bomb   Bomb
	Child  *ProbeChild `gorm:"foreignKey:ProbeID"`
}

type ProbeChild struct {
	ID      uint
	ProbeID uuid.UUID `gorm:"size:36"`
	Fail    bool      `gorm:"-"`
}

func (c *ProbeChild) BeforeCreate(*gorm.DB) error {
	if c.Fail {
		return errHook
	}
	return nil
}

func (p *Probe) AfterFind(tx *gorm.DB) error {
	if fn, ok := tx.Statement.Context.Value(finderKey{}).(func(*gorm.DB, *Probe) error); ok {
		return fn(tx, p)
	}
	return nil
}

// probes is a database with a plugin for Probe, and two sessions of two tenants.
type probes struct {
	*env
	sessions *gormsessions.Plugin[Probe]
	one, two *Probe
}

func (s suite) probe(t *testing.T) *probes {
	t.Helper()
	db, dialect, c, log := s.open(t)
	p := &probes{env: &env{t: t, ctx: t.Context(), db: db, dialect: dialect, clock: c, log: log}}
	must(t, db.AutoMigrate(&User{}))
	p.sessions = gormsessions.New[Probe](gormsessions.Config{})
	must(t, db.Use(p.sessions))
	must(t, db.AutoMigrate(&ProbeChild{}))
	p.user = p.newUser("ada")
	p.one, p.two = p.make("one"), p.make("two")
	for _, v := range []*Probe{p.one, p.two} {
		must(t, p.sessions.Create(p.ctx, v))
	}
	return p
}

// beside opens the database anew, with what other plugins register before ours and
// after it.
func (p *probes) beside(s suite, t *testing.T, before, after func(*gorm.DB)) *probes {
	t.Helper()
	db := s.again(t, p.dialect, p.clock, p.log)
	q := &probes{env: &env{t: t, ctx: t.Context(), db: db, dialect: p.dialect, clock: p.clock, log: p.log, user: p.user}, one: p.one, two: p.two}
	before(db)
	q.sessions = gormsessions.New[Probe](gormsessions.Config{SkipMigrate: true})
	must(t, db.Use(q.sessions))
	after(db)
	return q
}

func (p *probes) make(tenant string) *Probe {
	v := &Probe{Tenant: tenant, Fuse: "whole"}
	v.OwnerID = p.user.ID
	return v
}

// lookup looks one up by both ways and has them agree.
func (p *probes) lookup(ctx context.Context, sessions *gormsessions.Plugin[Probe], what string, v *Probe) (*Probe, error) {
	p.t.Helper()
	for _, scopes := range [][]gormsessions.Scope{nil, {gormsessions.WithOwner}} {
		got, err := sessions.Lookup(ctx, string(v.Token), scopes...)
		wanted, builderErr := sessions.Lookup(ctx, string(v.Token), append(scopes, byBuilder)...)
		same(p.t, what, got, wanted, err, builderErr)
	}
	return sessions.Lookup(ctx, string(v.Token))
}

func (p *probes) isFound(ctx context.Context, what string, v *Probe) *Probe {
	p.t.Helper()
	got, err := p.lookup(ctx, p.sessions, what, v)
	if err != nil {
		p.t.Errorf("%s: %v", what, err)
		return nil
	}
	want(p.t, what, got.ID, v.ID)
	return got
}

// directLists: what scopes, hooks and other plugins add to a list, they still add.
func (s suite) directLists(t *testing.T) {
	p := s.probe(t)
	child := ProbeChild{ProbeID: p.two.ID}
	must(t, p.db.Create(&child).Error)
	other := p.newUser("eve")
	gone := p.make("gone")
	gone.OwnerID = other.ID
	must(t, p.sessions.Create(p.ctx, gone))
	must(t, p.db.Delete(&other).Error)
	byTenant := func(db *gorm.DB) *gorm.DB { return db.Order("tenant") }
	tenants := func(what string, list []Probe, err error, wanted ...string) {
		t.Helper()
		must(t, err)
		got := []string{}
		for _, v := range list {
			got = append(got, v.Tenant)
		}
		want(t, what, fmt.Sprint(got), fmt.Sprint(wanted))
	}
	list := func(what string, wanted []string, scopes ...gormsessions.Scope) []Probe {
		t.Helper()
		got, err := p.sessions.List(p.ctx, append(scopes, byTenant)...)
		tenants(what, got, err, wanted...)
		return got
	}
	all := []string{"gone", "one", "two"}
	for range 2 {
		list("all", all)
		list("active", all, gormsessions.Active)
		list("of an owner", []string{"one", "two"}, gormsessions.ForUser(&p.user))
		list("but one", []string{"gone", "two"}, gormsessions.Except(p.one))
		want(t, "none is a list too", list("none", []string{}, gormsessions.Revoked) != nil, true)
		for _, v := range list("with owners", []string{"one", "two"}, gormsessions.WithOwner) {
			want(t, "the owner", v.Owner.Name, "ada")
		}
		for _, v := range list("with owners, if any", all, func(db *gorm.DB) *gorm.DB { return db.Joins("Owner") }) {
			want(t, "there is an owner", v.Owner != nil, v.Tenant != "gone")
		}
		for _, v := range list("preloaded", all, func(db *gorm.DB) *gorm.DB { return db.Preload("Child").Preload("Owner") }) {
			want(t, "there is an owner", v.Owner != nil, v.Tenant != "gone")
			want(t, "there is a child", v.Child != nil, v.Tenant == "two")
		}
		for _, v := range list("some columns", all, func(db *gorm.DB) *gorm.DB { return db.Select("tenant") }) {
			want(t, "a column that was left out", v.ID, uuid.Nil)
		}
		for _, v := range list("without a column", all, func(db *gorm.DB) *gorm.DB { return db.Omit("fuse") }) {
			want(t, "a column that was left out", v.Fuse, "")
		}
		list("within bounds", []string{"one"}, func(db *gorm.DB) *gorm.DB { return db.Offset(1).Limit(1) })
		list("by text", []string{"two"}, func(db *gorm.DB) *gorm.DB { return db.Where("tenant = ?", "two") }, gormsessions.Active)
		list("by text or another", []string{"one", "two"}, func(db *gorm.DB) *gorm.DB { return db.Where("tenant = 'one'").Or("tenant = 'two'") }, gormsessions.Active)
		got, err := p.sessions.With(p.db.Where("tenant = ?", "two")).List(p.ctx, gormsessions.Active)
		tenants("within a condition", got, err, "two")
	}

	found := 0
	ctx := context.WithValue(p.ctx, finderKey{}, func(tx *gorm.DB, v *Probe) error {
		found++
		v.Tenant += "!"
		return nil
	})
	got, err := p.sessions.List(ctx, byTenant)
	tenants("after a hook", got, err, "gone!", "one!", "two!")
	want(t, "hooks", found, 3)
	_, err = p.sessions.List(context.WithValue(p.ctx, finderKey{}, func(*gorm.DB, *Probe) error { return errHook }))
	wantErr(t, "a hook that fails", err, errHook)

	must(t, p.db.Transaction(func(tx *gorm.DB) error {
		must(t, tx.Model(p.one).Update("tenant", "written").Error)
		got, err := p.sessions.With(tx).List(p.ctx, byTenant)
		tenants("inside a transaction", got, err, "gone", "two", "written")
		return nil
	}))
	ended, end := context.WithCancel(p.ctx)
	end()
	_, err = p.sessions.List(ended)
	wantErr(t, "a context that has ended", err, context.Canceled)
	_, err = p.sessions.List(p.ctx, func(db *gorm.DB) *gorm.DB { return db.Where("no_such_column = 1") })
	if err == nil || errors.Is(err, gormsessions.ErrNoSession) {
		t.Errorf("a failing query: got %v", err)
	}
	p.idle()

	limited := p.beside(s, t, nobody, func(db *gorm.DB) {
		must(t, db.Callback().Query().Before("gorm:query").Register("other", ofProbe(tenancy)))
	})
	got, err = limited.sessions.List(context.WithValue(p.ctx, tenantKey{}, "two"))
	tenants("of a tenant", got, err, "two")
}

type tenantKey struct{}

func nobody(*gorm.DB) {}

// ofProbe is a callback for statements on Probe alone.
func ofProbe(fn func(*gorm.DB)) func(*gorm.DB) {
	return func(db *gorm.DB) {
		if db.Statement.Schema != nil && db.Statement.Schema.Name == "Probe" {
			fn(db)
		}
	}
}

// tenancy limits queries to the context's tenant, but for SQL of the application's own.
func tenancy(db *gorm.DB) {
	if tenant, ok := db.Statement.Context.Value(tenantKey{}).(string); ok && db.Statement.SQL.Len() == 0 {
		db.Where("tenant = ?", tenant)
	}
}

// commented is a pool that writes a comment into queries.
type commented struct {
	gorm.ConnPool
	asked *int
}

func (c commented) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	*c.asked++
	return c.ConnPool.QueryContext(ctx, "/* asked */ "+query, args...)
}

// begins is a pool that counts transactions.
type begins struct {
	*sql.DB
	n int
}

func (b *begins) BeginTx(ctx context.Context, opts *sql.TxOptions) (gorm.ConnPool, error) {
	b.n++
	return b.DB.BeginTx(ctx, opts)
}

func (s suite) otherPlugins(t *testing.T) {
	shared := s.probe(t)
	each := func(t *testing.T, place string, fn func(*gorm.DB), check func(*testing.T, *probes)) {
		t.Helper()
		register := func(db *gorm.DB) { must(t, db.Callback().Query().Before(place).Register("other", ofProbe(fn))) }
		t.Run("before ours", func(t *testing.T) { check(t, shared.beside(s, t, register, nobody)) })
		t.Run("after ours", func(t *testing.T) { check(t, shared.beside(s, t, nobody, register)) })
	}
	for _, place := range []string{"gorm:query", "*"} {
		t.Run("tenancy before "+place, func(t *testing.T) {
			each(t, place, tenancy, func(t *testing.T, p *probes) {
				of := func(tenant string) context.Context { return context.WithValue(p.ctx, tenantKey{}, tenant) }
				for range 2 {
					for range 2 {
						_, err := p.lookup(of("two"), p.sessions, "another tenant's", p.one)
						want(t, "another tenant's", err, gormsessions.ErrNoSession)
						p.isFound(of("one"), "the tenant's", p.one)
					}
					p.isFound(p.ctx, "no tenant's", p.one)
				}
			})
		})
	}
	calls := 0
	for name, fn := range map[string]func(*gorm.DB){
		"error":         func(db *gorm.DB) { _ = db.AddError(errHook) },
		"no conditions": func(db *gorm.DB) { wantConditions(db) },
		"Or":            func(db *gorm.DB) { db.Or("tenant = 'two'") },
		"Select":        func(db *gorm.DB) { db.Statement.Selects = []string{"id"} },
		"Omit":          func(db *gorm.DB) { db.Statement.Omits = []string{"tenant"} },
		"Select clause": func(db *gorm.DB) {
			db.Statement.AddClause(clause.Select{Columns: []clause.Column{{Name: "id"}}})
		},
		"From clause": func(db *gorm.DB) {
			db.Statement.AddClause(clause.From{Tables: []clause.Table{{Name: "nowhere"}}})
		},
		"hint":            func(db *gorm.DB) { hint(db, "WHERE") },
		"Unscoped":        func(db *gorm.DB) { db.Statement.Unscoped = true },
		"Distinct":        func(db *gorm.DB) { db.Statement.Distinct = true },
		"Table":           func(db *gorm.DB) { db.Statement.Table = "nowhere" },
		"Joins":           func(db *gorm.DB) { db.Joins("Owner") },
		"Preload":         func(db *gorm.DB) { db.Preload("Child") },
		"RaiseErrorOn":    func(db *gorm.DB) { db.Statement.RaiseErrorOnNotFound = true },
		"Order":           func(db *gorm.DB) { db.Order("tenant") },
		"mapped columns":  func(db *gorm.DB) { db.Statement.ColumnMapping = map[string]string{"tenant": "nowhere"} },
		"another context": func(db *gorm.DB) { db.Statement.Context = context.Background() },
		"wrapped context": func(db *gorm.DB) { db.Statement.Context = context.WithValue(db.Statement.Context, tenantKey{}, 1) },
		"wrapped pool": func(db *gorm.DB) {
			if _, ok := db.Statement.ConnPool.(commented); !ok {
				db.Statement.ConnPool = commented{db.Statement.ConnPool, &calls}
			}
		},
		"a count within": func(db *gorm.DB) {
			if _, ok := db.Get("counting"); ok {
				return
			}
			var n int64
			_ = db.AddError(db.Session(&gorm.Session{}).Set("counting", true).Model(&Probe{}).Count(&n).Error)
			if _, grouped := db.Statement.Context.Value(finderKey{}).(string); grouped && n != 1 {
				_ = db.AddError(fmt.Errorf("counted %d", n))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, "gorm:query", func(db *gorm.DB) {
				if _, ok := db.Statement.Context.Value(tenantKey{}).(string); ok {
					fn(db)
				}
			}, func(t *testing.T, p *probes) {
				ctx := context.WithValue(context.WithValue(p.ctx, tenantKey{}, "one"), finderKey{}, "count")
				for range 2 {
					_, _ = p.lookup(ctx, p.sessions, name, p.one)
					p.isFound(p.ctx, "without it", p.one)
				}
				// What adds nothing to the statement leaves it the fixed one.
				adds := !slices.Contains([]string{"error", "no conditions", "Preload", "another context", "wrapped context", "wrapped pool", "a count within"}, name)
				w := watchQueries(t, p.db)
				way := w.way(t, func() { _, _ = p.sessions.Lookup(p.ctx, string(p.one.Token)) })
				want(t, "afterwards GORM builds it", way == built, adds)
			})
		})
	}
	want(t, "the wrapped pool was used", calls > 0, true)

	t.Run("another query", func(t *testing.T) {
		for name, fn := range map[string]func(*gorm.DB){
			"fails": func(db *gorm.DB) { _ = db.AddError(errHook) },
			"counts": func(db *gorm.DB) {
				callbacks.Query(db)
				if db.Error == nil && db.RowsAffected != 1 && db.Statement.Dest != nil {
					_ = db.AddError(fmt.Errorf("%d rows", db.RowsAffected))
				}
			},
		} {
			t.Run(name, func(t *testing.T) {
				p := shared.beside(s, t, nobody, nobody)
				p.isFound(p.ctx, "by GORM's own", p.one)
				must(t, p.db.Callback().Query().Replace("gorm:query", fn))
				_, err := p.lookup(p.ctx, p.sessions, name, p.one)
				want(t, "fails", errors.Is(err, errHook), name == "fails")
			})
		}
	})

	t.Run("ours are removed", func(t *testing.T) {
		for _, name := range []string{"end_direct", "begin_insert", "end_insert"} {
			p := shared.beside(s, t, nobody, nobody)
			p.isFound(p.ctx, "before", p.one)
			must(t, p.db.Callback().Query().Remove(p.sessions.Name()+":"+name))
			must(t, p.db.Callback().Create().Remove(p.sessions.Name()+":"+name))
			p.isFound(p.ctx, "without "+name, p.one)
			v := p.make("three")
			must(t, p.sessions.Create(p.ctx, v))
			p.isFound(p.ctx, "created without "+name, v)
		}
	})

	t.Run("creates", func(t *testing.T) {
		type register = func(*testing.T, *gorm.DB)
		before := func(fn func(*gorm.DB)) register {
			return func(t *testing.T, db *gorm.DB) {
				must(t, db.Callback().Create().Before("gorm:create").Register("other", ofProbe(fn)))
			}
		}
		after := func(name string, fn func(*gorm.DB)) register {
			return func(t *testing.T, db *gorm.DB) {
				must(t, db.Callback().Create().After("gorm:create").Register(name, ofProbe(fn)))
			}
		}
		fail := func(db *gorm.DB) { _ = db.AddError(errHook) }
		for name, c := range map[string]struct {
			register register
			tenant   string
			err      error
		}{
			"SetColumn": {before(func(db *gorm.DB) { db.Statement.SetColumn("Tenant", "set") }), "set", nil},
			"Omit":      {before(func(db *gorm.DB) { db.Statement.Omits = append(db.Statement.Omits, "Tenant") }), "", nil},
			"Returning": {before(func(db *gorm.DB) { db.Statement.AddClause(clause.Returning{}) }), "given", nil},
			"values": {after("other", func(db *gorm.DB) {
				if _, ok := db.Statement.Clauses["VALUES"]; !ok {
					fail(db)
				}
			}), "given", nil},
			"fails after":             {after("other", fail), "", errHook},
			"fails after, named gorm": {after("gormless:audit", fail), "", errHook},
			"fails in GORM's place": {func(t *testing.T, db *gorm.DB) {
				must(t, db.Callback().Create().Replace("gorm:after_create", ofProbe(fail)))
			}, "", errHook},
		} {
			t.Run(name, func(t *testing.T) {
				register := func(db *gorm.DB) { c.register(t, db) }
				for _, p := range []*probes{shared.beside(s, t, register, nobody), shared.beside(s, t, nobody, register)} {
					for range 2 {
						rows := func() (n int64) {
							must(t, p.db.Model(&Probe{}).Count(&n).Error)
							return n
						}
						before, v := rows(), p.make("given")
						wantErr(t, "Create", p.sessions.Create(p.ctx, v), c.err)
						if c.err != nil {
							want(t, "rows after a create that failed", rows(), before)
							want(t, "token", string(v.Token), "")
							continue
						}
						want(t, "tenant", p.isFound(p.ctx, "created", v).Tenant, c.tenant)
					}
				}
			})
		}
	})
}

// wantConditions refuses a query of all rows.
func wantConditions(db *gorm.DB) {
	if _, ok := db.Statement.Clauses["WHERE"]; !ok {
		_ = db.AddError(gorm.ErrMissingWhereClause)
	}
}

// hint writes a comment before a clause.
func hint(db *gorm.DB, name string) {
	c := db.Statement.Clauses[name]
	c.BeforeExpression = clause.Expr{SQL: "/* hint */"}
	db.Statement.Clauses[name] = c
}

// directWith: what With was given holds for a look-up, whichever way it goes.
func (s suite) directWith(t *testing.T) {
	p := s.probe(t)
	for name, c := range map[string]struct {
		with func(*gorm.DB) *gorm.DB
		err  error
	}{
		"Session":     {func(db *gorm.DB) *gorm.DB { return db.Session(&gorm.Session{}) }, nil},
		"NewDB":       {func(db *gorm.DB) *gorm.DB { return db.Where("1 = 0").Session(&gorm.Session{NewDB: true}) }, nil},
		"SkipHooks":   {func(db *gorm.DB) *gorm.DB { return db.Session(&gorm.Session{SkipHooks: true}) }, nil},
		"PrepareStmt": {func(db *gorm.DB) *gorm.DB { return db.Session(&gorm.Session{PrepareStmt: true}) }, nil},
		"QueryFields": {func(db *gorm.DB) *gorm.DB { return db.Session(&gorm.Session{QueryFields: true}) }, nil},
		"DryRun":      {func(db *gorm.DB) *gorm.DB { return db.Session(&gorm.Session{DryRun: true}) }, gorm.ErrDryRunModeUnsupported},
		"Set":         {func(db *gorm.DB) *gorm.DB { return db.Set("a setting", 1) }, nil},
		"Debug":       {func(db *gorm.DB) *gorm.DB { return db.Debug() }, nil},
		"Model":       {func(db *gorm.DB) *gorm.DB { return db.Model(&User{}) }, nil},
		"Where":       {func(db *gorm.DB) *gorm.DB { return db.Where("tenant = ?", "two") }, gormsessions.ErrNoSession},
		"Where or":    {func(db *gorm.DB) *gorm.DB { return db.Where("1 = 0").Or("tenant = ?", "one") }, nil},
		"Scopes": {func(db *gorm.DB) *gorm.DB {
			return db.Scopes(func(db *gorm.DB) *gorm.DB { return db.Where("tenant = ?", "two") })
		}, gormsessions.ErrNoSession},
		"Unscoped": {func(db *gorm.DB) *gorm.DB { return db.Unscoped() }, nil},
		"Preload":  {func(db *gorm.DB) *gorm.DB { return db.Preload("Owner") }, nil},
		"Joins":    {func(db *gorm.DB) *gorm.DB { return db.Joins("Owner") }, nil},
		"Offset":   {func(db *gorm.DB) *gorm.DB { return db.Offset(1) }, gormsessions.ErrNoSession},
		"Select":   {func(db *gorm.DB) *gorm.DB { return db.Select("id") }, gormsessions.ErrInvalidValue},
		"Omit":     {func(db *gorm.DB) *gorm.DB { return db.Omit("tenant") }, gormsessions.ErrInvalidValue},
		"alias":    {func(db *gorm.DB) *gorm.DB { return db.Table("? AS s", clause.Table{Name: tableOf(t, p.db, &Probe{})}) }, nil},
		"error": {func(db *gorm.DB) *gorm.DB {
			db = db.Session(&gorm.Session{})
			_ = db.AddError(errHook)
			return db
		}, errHook},
	} {
		for range 2 {
			_, err := p.lookup(p.ctx, p.sessions.With(c.with(p.db)), name, p.one)
			wantErr(t, name, err, c.err)
			p.isFound(p.ctx, name+", and then without it", p.one)
		}
	}
	// Rows that are not committed, seen in their transaction alone, which rolls back.
	v := p.make("uncommitted")
	wantErr(t, "the transaction", p.db.Transaction(func(tx *gorm.DB) error {
		must(t, p.sessions.With(tx).Create(p.ctx, v))
		got, err := p.lookup(p.ctx, p.sessions.With(tx), "in its transaction", v)
		must(t, err)
		want(t, "in its transaction", got.ID, v.ID)
		must(t, tx.Model(&Probe{}).Where("id = ?", p.one.ID).Update("tenant", "changed").Error)
		got, err = p.lookup(p.ctx, p.sessions.With(tx), "changed", p.one)
		must(t, err)
		want(t, "changed", got.Tenant, "changed")
		return errHook
	}), errHook)
	_, err := p.lookup(p.ctx, p.sessions, "rolled back", v)
	want(t, "rolled back", err, gormsessions.ErrNoSession)
	want(t, "rolled back", p.isFound(p.ctx, "rolled back", p.one).Tenant, "one")

	// From a hook, with its transaction and the look-up's own context.
	within := context.WithValue(p.ctx, finderKey{}, func(tx *gorm.DB, found *Probe) error {
		if found.ID == p.one.ID {
			other, err := p.sessions.With(tx).Lookup(tx.Statement.Context, string(p.two.Token))
			if err != nil {
				return err
			}
			found.Tenant += " and " + other.Tenant
		}
		return nil
	})
	want(t, "a look-up within another", p.isFound(within, "within", p.one).Tenant, "one and two")
	must(t, p.db.Transaction(func(tx *gorm.DB) error {
		_, err := p.lookup(within, p.sessions.With(tx), "within, in a transaction", p.one)
		return err
	}))

	// A create takes a transaction only where another thing has a part in it.
	pool, err := p.db.DB()
	must(t, err)
	spy := &begins{DB: pool}
	begun := func(v *Probe, edit ...func(*gorm.DB) *gorm.DB) int {
		t.Helper()
		tx := p.db.Session(&gorm.Session{Context: p.ctx})
		tx.Statement.ConnPool = spy
		spy.n = 0
		for _, fn := range edit {
			tx = fn(tx)
		}
		must(t, p.sessions.With(tx).Create(p.ctx, v))
		p.isFound(p.ctx, "created", v)
		return spy.n
	}
	want(t, "transactions of a create", begun(p.make("x")), 0)
	v = p.make("x")
	v.Child = &ProbeChild{}
	if !p.db.SkipDefaultTransaction && !resolved(p.db) { // dbresolver begins on a pool of its own
		want(t, "transactions of a create with a child", begun(v), 1)
		want(t, "transactions of a create with a clause", begun(p.make("x"), func(db *gorm.DB) *gorm.DB { return db.Clauses(clause.Returning{}) }), 1)
		v = p.make("x")
		v.Child = &ProbeChild{Fail: true}
		wantErr(t, "a child that fails", p.sessions.Create(p.ctx, v), errHook)
		want(t, "token", string(v.Token), "")
		var n int64
		must(t, p.db.Model(&Probe{}).Where("tenant = ?", "x").Count(&n).Error)
		want(t, "rows", n, 3)

		// What the database returns cannot be read.
		stamps := gormsessions.New[Stamped](gormsessions.Config{})
		must(t, p.db.Use(stamps))
		st := &Stamped{Fuse: "whole"}
		st.OwnerID = p.user.ID
		must(t, stamps.Create(p.ctx, st))
		st = &Stamped{}
		st.OwnerID = p.user.ID
		if err := stamps.Create(p.ctx, st); err != nil { // where there is RETURNING
			n, err := stamps.Count(p.ctx)
			must(t, err)
			want(t, "rows", n, 1)
			want(t, "token", string(st.Token), "")
		}
	}
}

// directFails: what goes wrong is an error of its own, holds no connection, and
// leaves nothing behind for the next.
func (s suite) directFails(t *testing.T) {
	p := s.probe(t)
	pool, err := p.db.DB()
	must(t, err)
	cancelled, cancel := context.WithCancel(p.ctx)
	cancel()
	past, cancel := context.WithDeadline(p.ctx, time.Unix(0, 0))
	defer cancel()
	for range 2 {
		_, err := p.lookup(cancelled, p.sessions, "cancelled", p.one)
		wantErr(t, "cancelled", err, context.Canceled)
		_, err = p.lookup(past, p.sessions, "past", p.one)
		wantErr(t, "past", err, context.DeadlineExceeded)
		wantErr(t, "Create, cancelled", p.sessions.Create(cancelled, p.make("x")), context.Canceled)
		wantErr(t, "Create, past", p.sessions.Create(past, p.make("x")), context.DeadlineExceeded)
		p.isFound(p.ctx, "then", p.one)
	}

	explode := func(_ *gorm.DB, found *Probe) error { panic("an AfterFind of the application's") }
	panics := func(what string, ctx context.Context, v *Probe) {
		t.Helper()
		for _, scopes := range [][]gormsessions.Scope{nil, {byBuilder}, {gormsessions.WithOwner}} {
			func() {
				defer func() { want(t, what+": panicked", recover() != nil, true) }()
				_, _ = p.sessions.Lookup(ctx, string(v.Token), scopes...)
			}()
			want(t, what+": connections in use", pool.Stats().InUse, 0)
			p.isFound(p.ctx, what+", the next", p.one)
		}
	}
	panics("AfterFind", context.WithValue(p.ctx, finderKey{}, explode), p.one)
	broken := p.make("broken")
	must(t, p.sessions.Create(p.ctx, broken))
	must(t, p.db.Model(broken).Update("bomb", Bomb("panic")).Error)
	panics("serializer", p.ctx, broken)
	must(t, p.db.Model(broken).Updates(map[string]any{"bomb": Bomb(""), "fuse": "error"}).Error)
	for range 3 {
		_, err = p.lookup(p.ctx, p.sessions, "a Scan that fails", broken)
		wantErr(t, "a Scan that fails", err, errHook)
		want(t, "the next's", string(p.isFound(p.ctx, "the next", p.two).Fuse), "whole")
	}
	must(t, p.db.Exec("UPDATE "+p.db.Statement.Quote(tableOf(t, p.db, &Probe{}))+" SET fuse = NULL, tenant = NULL WHERE id = ?", broken.ID).Error)
	got := p.isFound(p.ctx, "NULL", broken)
	want(t, "of another row", string(got.Fuse)+got.Tenant, "")

	// The table changes under the statements that were prepared.
	must(t, p.db.Exec("ALTER TABLE "+p.db.Statement.Quote(tableOf(t, p.db, &Probe{}))+" ADD COLUMN added varchar(20) DEFAULT 'x'").Error)
	p.isFound(p.ctx, "the table has a new column", p.one)
	v := p.make("later")
	must(t, p.sessions.Create(p.ctx, v))
	p.isFound(p.ctx, "created with a new column", v)

	// Many at once, at the first use, each its own.
	q := s.probe(t)
	var list []*Probe
	for i := range 8 {
		v := q.make(fmt.Sprint(i))
		must(t, q.sessions.Create(q.ctx, v))
		list = append(list, v)
	}
	var all sync.WaitGroup
	for i := range 32 {
		all.Go(func() {
			v := list[i%len(list)]
			for range 3 {
				got, err := q.sessions.Lookup(q.ctx, string(v.Token), [][]gormsessions.Scope{nil, {gormsessions.WithOwner}}[i%2]...)
				if err != nil || got.ID != v.ID || got.Tenant != v.Tenant {
					t.Errorf("got %+v, %v", got, err)
				}
			}
		})
	}
	all.Wait()

	// One connection is enough, and none is kept.
	one, err := q.db.DB()
	must(t, err)
	one.SetMaxOpenConns(1)
	q.isFound(q.ctx, "by one connection", list[0])
	must(t, q.sessions.Create(q.ctx, q.make("by one connection")))
	want(t, "connections in use", one.Stats().InUse, 0)
	for range 20 { // ever new pools, as an application with a database for each tenant has
		other, err := s.again(t, q.dialect, q.clock, q.log).DB()
		must(t, err)
		tx := q.db.Session(&gorm.Session{Context: q.ctx})
		tx.Statement.ConnPool = other
		for range 2 {
			got, err := q.lookup(q.ctx, q.sessions.With(tx), "by another pool", list[1])
			must(t, err)
			want(t, "by another pool", got.ID, list[1].ID)
		}
		want(t, "another pool was used", other.Stats().OpenConnections > 0, true)
		must(t, other.Close())
	}
	must(t, pool.Close())
	_, err = p.lookup(p.ctx, p.sessions, "closed", p.one)
	if err == nil && !resolved(p.db) || errors.Is(err, gormsessions.ErrNoSession) { // dbresolver's pools are open
		t.Errorf("closed: got %v", err)
	}

	// The plugin's keys are all tried, whatever their digests' lengths.
	db := q.db
	keyring := gormsessions.Config{Hashers: []gormsessions.Hasher{
		gormsessions.Hash(crypto.SHA512), gormsessions.Hash(crypto.SHA256), gormsessions.HMAC(crypto.SHA1, make([]byte, 32))}}
	old := gormsessions.New[Guest](gormsessions.Config{Hashers: keyring.Hashers[2:]})
	must(t, db.Use(old))
	guest := &Guest{Cart: "x"}
	must(t, old.Create(q.ctx, guest))
	config := &gorm.Config{NowFunc: q.clock.Now, Logger: q.log, DefaultContextTimeout: time.Hour}
	s.Setup(config)
	again := gormsessions.New[Guest](keyring)
	db = s.Open(t, q.dialect, config)
	must(t, db.Use(again))
	w := watchQueries(t, db)
	found, err := again.Lookup(q.ctx, string(guest.Token))
	must(t, err)
	want(t, "by the third key", found.ID, guest.ID)
	want(t, "by the third key", w.ways[0], fixed)
}

// resolved reports whether dbresolver chooses the pools.
func resolved(db *gorm.DB) bool { return db.Plugins["gorm:db_resolver"] != nil }
