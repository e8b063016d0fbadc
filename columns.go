package gormsessions

import (
	"context"
	"fmt"
	"reflect"
	"strings"

	"gorm.io/gorm"
	"gorm.io/gorm/clause"
	"gorm.io/gorm/schema"
)

// columns says where the fields of a session stand in the schema of a model
// that embeds it: under which column names, given prefixes and naming
// strategies, and beside which owner.
type columns struct {
	schema *schema.Schema
	path   string // the bind name of Base in the model, with its last dot
	beside string // that of the struct which holds Base, and its owner

	id, digest, data            *schema.Field
	expiresAt, idle, deadline   *schema.Field
	lastUsedAt, authenticatedAt *schema.Field
	revokedAt, revokedReason    *schema.Field
	createdAt, updatedAt        *schema.Field
	ownerID, ownerType          *schema.Field        // nil where the model has none
	owner                       *schema.Relationship // nil where the model has none
}

var digestType = reflect.TypeFor[Digest]()

// columnsOf finds Base by the one column of type Digest, so that it need not
// guess at names: another embedded struct may have a CreatedAt too.
func columnsOf(s *schema.Schema) (*columns, error) {
	c := &columns{schema: s}
	for _, f := range s.Fields {
		if f.FieldType != digestType || f.DBName == "" {
			continue
		}
		if c.digest != nil {
			return nil, fmt.Errorf("%w: %s embeds two sessions", ErrNotModel, s.Name)
		}
		c.digest = f
		c.path = strings.Join(f.BindNames[:len(f.BindNames)-1], ".") + "."
	}
	if c.digest == nil {
		return nil, fmt.Errorf("%w: %s embeds neither gormsessions.Session nor gormsessions.Base", ErrNotModel, s.Name)
	}
	for _, b := range c.base() {
		if *b.field = s.FieldsByBindName[c.path+b.name]; *b.field == nil {
			return nil, fmt.Errorf("%w: %s lacks the field %s%s", ErrNotModel, s.Name, c.path, b.name)
		}
	}
	// The owner stands beside Base: in Session, or in the application's struct.
	path := strings.TrimSuffix(c.path, ".")
	c.beside = path[:strings.LastIndexByte(path, '.')+1]
	c.ownerID = s.FieldsByBindName[c.beside+"OwnerID"]
	c.ownerType = s.FieldsByBindName[c.beside+"OwnerType"]
	if rel := s.Relationships.Relations["Owner"]; rel != nil && rel.Type == schema.BelongsTo &&
		rel.Field.BindName() == c.beside+"Owner" && len(rel.References) == 1 && rel.References[0].ForeignKey == c.ownerID {
		c.owner = rel
	}
	return c, nil
}

// base lists the columns of Base by their Go names.
func (c *columns) base() []baseColumn {
	return []baseColumn{
		{"ID", &c.id}, {"TokenDigest", &c.digest}, {"Data", &c.data},
		{"ExpiresAt", &c.expiresAt}, {"IdleTimeout", &c.idle}, {"Deadline", &c.deadline},
		{"LastUsedAt", &c.lastUsedAt}, {"AuthenticatedAt", &c.authenticatedAt},
		{"RevokedAt", &c.revokedAt}, {"RevokedReason", &c.revokedReason},
		{"CreatedAt", &c.createdAt}, {"UpdatedAt", &c.updatedAt},
	}
}

type baseColumn struct {
	name  string
	field **schema.Field
}

// columnsFor finds the columns of a statement's model.
func columnsFor(db *gorm.DB) (*columns, error) {
	stmt := db.Statement
	model := stmt.Model
	if model == nil {
		model = stmt.Dest
	}
	if model == nil {
		return nil, fmt.Errorf("%w: give it one with db.Model", ErrNotModel)
	}
	if err := stmt.Parse(model); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotModel, err)
	}
	if b := registeredFor(db, stmt.Schema.ModelType); b != nil && b.schema == stmt.Schema {
		return b.columns, nil
	}
	return columnsOf(stmt.Schema)
}

// check refuses a model whose own fields hide columns of Base: GORM would then
// store some other value under the name of a column that sign-ins depend on.
func (c *columns) check() error {
	s := c.schema
	for _, f := range s.Fields {
		if strings.HasPrefix(f.BindName(), c.path) && f.StructField.Index[0] < 0 {
			return fmt.Errorf("gormsessions: %s embeds its session by pointer: embed it by value", s.Name)
		}
	}
	for _, f := range s.Fields {
		if f.IndirectFieldType == abilitiesType && f.Serializer != nil {
			return fmt.Errorf("gormsessions: %s.%s is stored by a serializer, which would take malformed abilities too: leave the tag out", s.Name, f.BindName())
		}
	}
	for _, b := range c.base() {
		f := *b.field
		if now := s.FieldsByDBName[f.DBName]; now != f {
			return fmt.Errorf("gormsessions: %s.%s hides the column %s of the session: rename it, or give the session an embeddedPrefix",
				s.Name, now.BindName(), f.DBName)
		}
	}
	if len(s.PrimaryFields) != 1 || s.PrimaryFields[0] != c.id {
		return fmt.Errorf("gormsessions: %s has a primary key of its own: a session's is its ID", s.Name)
	}
	return c.checkOwner()
}

// checkOwner refuses a key type that is not the owner's: GORM would convert.
func (c *columns) checkOwner() error {
	s := c.schema
	if c.owner == nil && c.ofSession() {
		return fmt.Errorf("gormsessions: %s embeds Session[%v, …], but GORM makes no association of that over OwnerID: the owner is a model with a primary key of one column",
			s.Name, s.FieldsByBindName[c.beside+"Owner"].IndirectFieldType)
	}
	if c.owner == nil {
		return nil
	}
	if o := c.owner.Field.FieldType; o.Kind() != reflect.Pointer || o.Elem().Kind() != reflect.Struct {
		return fmt.Errorf("gormsessions: %s.Owner is a %v: the owner is a struct, without a pointer", s.Name, o)
	}
	if c.ownerID.FieldType.Kind() == reflect.Pointer {
		return fmt.Errorf("gormsessions: %s has owner keys of type %v: a key is no pointer", s.Name, c.ownerID.FieldType)
	}
	owner, key := c.owner.FieldSchema, c.owner.References[0].PrimaryKey
	if len(owner.PrimaryFields) != 1 {
		return fmt.Errorf("gormsessions: %s, the owner of %s, has a primary key of %d columns: one is needed",
			owner.Name, s.Name, len(owner.PrimaryFields))
	}
	if key != owner.PrimaryFields[0] {
		return fmt.Errorf("gormsessions: %s.Owner refers to %s.%s, which is not its primary key", s.Name, owner.Name, key.Name)
	}
	if key.FieldType != c.ownerID.FieldType {
		return fmt.Errorf("gormsessions: %s has owner keys of type %v, but %s.%s is %v: write Session[%s, %v]",
			s.Name, c.ownerID.FieldType, owner.Name, key.Name, key.FieldType, owner.Name, key.FieldType)
	}
	if c.ownerID != s.FieldsByDBName[c.ownerID.DBName] {
		return fmt.Errorf("gormsessions: %s.%s hides the column %s of the session: rename it",
			s.Name, s.FieldsByDBName[c.ownerID.DBName].BindName(), c.ownerID.DBName)
	}
	return nil
}

// readOnly reports whether only the plugin's methods may update a column.
func (c *columns) readOnly(f *schema.Field) bool {
	return f != c.data && (f == c.ownerID || f == c.ownerType || strings.HasPrefix(f.BindName(), c.path))
}

// extra reports whether a column is the application's own: of neither Base nor
// Session.
func (c *columns) extra(f *schema.Field) bool {
	return !strings.HasPrefix(f.BindName(), c.path) && !(f == c.ownerID && c.ofSession())
}

// ofSession reports whether the owner's columns are those of Session.
func (c *columns) ofSession() bool {
	f := c.schema.FieldsByBindName[c.beside+"Owner"]
	return f != nil && f.TagSettings["BELONGSTO"] != ""
}

// at is a column of the statement's own table: qualified, because the owner
// that may be joined has columns of the same names.
func at(f *schema.Field) clause.Column {
	return clause.Column{Table: clause.CurrentTable, Name: f.DBName}
}

// column is a column as the left side of a SET, where PostgreSQL takes no table.
func column(f *schema.Field) clause.Column { return clause.Column{Name: f.DBName} }

// ownerIs is the condition that a session belongs to owner: a model, a pointer
// to one, or a bare key.
func (c *columns) ownerIs(db *gorm.DB, owner any) (clause.Expression, error) {
	if c.ownerID == nil {
		return nil, fmt.Errorf("%w: %s has no OwnerID", ErrNotModel, c.schema.Name)
	}
	v := reflect.ValueOf(owner)
	for v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	if !v.IsValid() {
		return nil, ErrZeroOwner
	}
	ctx := db.Statement.Context
	switch {
	case c.owner != nil && v.Type() == c.owner.FieldSchema.ModelType:
		key, zero := c.owner.References[0].PrimaryKey.ValueOf(ctx, v)
		return c.keyIs(key, zero)
	case c.ownerType != nil:
		kind, key, err := c.polymorphicOwner(db, v)
		if err != nil {
			return nil, err
		}
		return unit("? = ? AND ?", at(c.ownerType), kind, key), nil
	}
	key, err := convert(v, c.ownerID.FieldType)
	if v.CanFloat() {
		err = ErrWrongOwner // no key is a fraction
	}
	if err == nil && key.Kind() == reflect.String {
		err = checkText("the owner's key", key.String())
	}
	if err != nil {
		wanted := fmt.Sprint(c.ownerID.FieldType)
		if c.owner != nil {
			wanted = c.owner.FieldSchema.Name + " or a key of type " + wanted
		}
		return nil, fmt.Errorf("%w: %s belongs to %s, not to %v", ErrWrongOwner, c.schema.Name, wanted, v.Type())
	}
	if c.owner == nil && key.Kind() == reflect.String && db.Name() == "mysql" && !key.IsZero() {
		// Without a foreign key it is the application's to say which keys are
		// the same; MySQL's collations take Bob and bob for one.
		return unit("? = ? AND CAST(CONVERT(? USING utf8mb4) AS BINARY) = CAST(? AS BINARY)",
			at(c.ownerID), key.Interface(), at(c.ownerID), key.Interface()), nil
	}
	return c.keyIs(key.Interface(), key.IsZero())
}

func (c *columns) keyIs(key any, zero bool) (clause.Expression, error) {
	if zero {
		return nil, ErrZeroOwner
	}
	return clause.Eq{Column: at(c.ownerID), Value: key}, nil
}

// polymorphicOwner is what GORM's polymorphic association stores for an owner:
// its kind, and its key converted to the column's type.
func (c *columns) polymorphicOwner(db *gorm.DB, v reflect.Value) (string, clause.Expression, error) {
	stmt := &gorm.Statement{DB: db}
	if v.Kind() != reflect.Struct || stmt.Parse(v.Interface()) != nil || stmt.Schema.PrioritizedPrimaryField == nil {
		return "", nil, fmt.Errorf("%w: %s has owners of several kinds: give the owner's model, not %v",
			ErrWrongOwner, c.schema.Name, v.Type())
	}
	kind, key := stmt.Schema.Table, stmt.Schema.PrioritizedPrimaryField
	for _, rel := range stmt.Schema.Relationships.Relations {
		if rel.Polymorphic != nil && rel.Schema == stmt.Schema && rel.FieldSchema.ModelType == c.schema.ModelType {
			kind = rel.Polymorphic.Value
		}
	}
	value, zero := key.ValueOf(db.Statement.Context, v)
	if zero {
		return "", nil, ErrZeroOwner
	}
	model := reflect.New(c.schema.ModelType).Elem()
	if err := c.ownerID.Set(context.Background(), model, value); err != nil {
		return "", nil, fmt.Errorf("%w: the key of %s does not fit %s: %w", ErrWrongOwner, stmt.Schema.Name, c.ownerID.BindName(), err)
	}
	value, zero = c.ownerID.ValueOf(context.Background(), model)
	cond, err := c.keyIs(value, zero)
	return kind, cond, err
}
