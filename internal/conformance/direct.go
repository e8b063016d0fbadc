package conformance

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"math"
	"math/rand/v2"
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
	switch *f {
	case "error":
		return errHook
	case "panic":
		panic("a Scan of the application's")
	}
	return nil
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
		tokens = append(tokens, string(base.Token))
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
	both := func(what string, scopes ...gormsessions.Scope) {
		t.Helper()
		got, wanted := ask(fixed, scopes...), ask(built, append(scopes, byBuilder)...)
		for i := range got {
			same(t, fmt.Sprintf("%s, row %d", what, i), got[i].session, wanted[i].session, got[i].err, wanted[i].err)
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
		row := map[string]any{}
		must(t, db.Table(tableOf(t, db, model)).Where(clause.Eq{Column: clause.Column{Name: columnOf(t, db, model, "ID")}, Value: id}).Take(&row).Error)
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
