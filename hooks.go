package gormsessions

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"gorm.io/datatypes"
	"gorm.io/gorm"
	"gorm.io/gorm/clause"
	"gorm.io/gorm/schema"
)

// The plugin works by callbacks on the model's schema, not by BeforeCreate
// methods: such a method is shadowed by the embedding struct's own, skipped with
// SkipHooks and by map creates, and two embedded ones cancel each other. A
// session would then be stored with an empty digest.

const (
	ownUpdate = "gormsessions:own_update" // set to the binding on its own UPDATEs
	snapshots = "gormsessions:snapshots"  // the values of a create as they were
	aroundKey = "gormsessions:around:"    // and those of all creates within a statement
	savedMap  = "gorm:saved_association_map"
	maxReason = 255 // characters; the column's size
)

var (
	errNilSession = fmt.Errorf("%w: the session is nil", ErrInvalidValue)
	errUnsaved    = fmt.Errorf("%w: the session was not saved", ErrInvalidValue)
	errJoins      = fmt.Errorf("%w: GORM ignores joins (WithOwner is one) in updates and deletes: limit by ForOwner or the session's own columns", ErrInvalidValue)

	// errNothingToInsert ends GORM's create of an association whose sessions are
	// all stored already. It never leaves the callbacks.
	errNothingToInsert = errors.New("gormsessions: nothing to insert")
)

// GormValue implements [gorm.Valuer]. An empty digest is an error, whichever way
// it came to be bound: nothing is ever stored or found under one. So is any digest
// in an insert that the plugin did not fill in.
func (d Digest) GormValue(_ context.Context, db *gorm.DB) clause.Expr {
	filled := len(d) > 0
	if _, insert := db.Statement.Clauses["INSERT"]; insert && filled {
		_, filled = db.InstanceGet(snapshots)
	}
	if !filled {
		_ = db.AddError(fmt.Errorf("%w: no plugin is registered for this model, or its callback was removed or replaced", ErrUnsafeCreate))
	}
	return clause.Expr{SQL: "?", Vars: []any{boundDigest(d)}}
}

// boundDigest is a digest among a statement's parameters: bytes for the driver,
// redacted for GORM's logger, which looks for a Stringer.
type boundDigest []byte

func (boundDigest) String() string { return redacted }

func (b *binding) mine(stmt *gorm.Statement) bool {
	return stmt.Schema != nil && stmt.Schema.ModelType == b.schema.ModelType
}

// snapshot is a session as it was before the plugin filled it in.
type snapshot struct {
	value   reflect.Value
	base    Base
	ownerID any
}

// beforeCreate fills in the sessions of a create, or refuses it.
func (b *binding) beforeCreate(db *gorm.DB) {
	stmt := db.Statement
	if db.Error != nil || !b.mine(stmt) {
		return
	}
	association, err := b.checkCreate(db)
	switch {
	case err == errNothingToInsert:
		db.Error = err
		return
	case err != nil:
		_ = db.AddError(err)
		return
	}
	// The owner is only read: GORM would else write its row. (And it would put
	// its own time of update in place of the plugin's.)
	stmt.Omits = append(slices.Clip(stmt.Omits), b.ownerName()...)
	stmt.Settings.Delete("gorm:update_track_time")

	values, err := b.elements(stmt.ReflectValue)
	if err != nil {
		_ = db.AddError(err)
		return
	}
	var fresh, stored []reflect.Value
	for _, v := range values {
		switch base := sessionAt(v); {
		case len(base.TokenDigest) == 0 && association && base.ID != uuid.Nil:
			// Loaded in part, or deleted since.
			there, err := b.isStored(db, base.ID)
			if err == nil && !there {
				err = fmt.Errorf("%w: the associated session %s is not stored: leave the ID of a new one empty", ErrUnsafeCreate, base.ID)
			}
			if db.AddError(err) != nil {
				return
			}
			stored = append(stored, v)
		case len(base.TokenDigest) == 0:
			fresh = append(fresh, v)
		case association:
			stored = append(stored, v)
		default:
			_ = db.AddError(fmt.Errorf("%w: the session %s was created before: create a new value, and change this one with Updates", ErrUnsafeCreate, base.ID))
			return
		}
	}
	if association {
		b.createAssociated(db, fresh, stored)
	}
	if db.Error != nil {
		return
	}

	before := make([]snapshot, len(fresh))
	for i, v := range fresh {
		before[i] = snapshot{value: v, base: *sessionAt(v)}
		if b.ownerID != nil {
			before[i].ownerID, _ = b.ownerID.ValueOf(stmt.Context, v)
		}
	}
	db.InstanceSet(snapshots, before)
	if a := b.around(db); a != nil {
		a.list = append(a.list, before...)
	}
	now := nowOf(db)
	for _, v := range fresh {
		if err := b.fill(db, v, now); err != nil {
			_ = db.AddError(err)
			return
		}
	}
}

// afterCreate puts the values of a create that stored nothing back as they were:
// a token that is in no database must not be handed out.
func (b *binding) afterCreate(db *gorm.DB) {
	if !b.mine(db.Statement) {
		return
	}
	if db.Error == errNothingToInsert {
		db.Error = nil
		return
	}
	if box := b.limitedBox(db); box != nil {
		box.settle(db)
	}
	before, _ := db.InstanceGet(snapshots)
	list, _ := before.([]snapshot)
	b.sendCreated(db, list)
	if db.Error == nil && !db.DryRun {
		return
	}
	// MySQL's error for a duplicate shows the value.
	if t, ok := db.Dialector.(gorm.ErrorTranslator); ok && db.Error != nil && strings.Contains(db.Error.Error(), b.digest.DBName) &&
		errors.Is(t.Translate(db.Error), gorm.ErrDuplicatedKey) {
		db.Error = fmt.Errorf("%w: the token is in use: %w", ErrUnsafeCreate, gorm.ErrDuplicatedKey)
	}
	b.restore(db, list)
}

// sendCreated sends the events of a create, or leaves them to the statement that
// it is part of.
func (b *binding) sendCreated(db *gorm.DB, created []snapshot) {
	if b.onEvent == nil || db.DryRun {
		return
	}
	box := b.limitedBox(db)
	if box == nil {
		box = &outbox{}
	}
	for _, s := range created {
		box.events = append(box.events, b.event(EventCreated, s.value, nowOf(db), ""))
	}
	events := box.after(db.Error)
	if a := b.around(db); a != nil {
		a.box.events = append(a.box.events, events...)
		return
	}
	b.send(db, events...)
}

func (b *binding) restore(db *gorm.DB, list []snapshot) {
	for _, s := range list {
		*sessionAt(s.value) = s.base
		if b.ownerID != nil {
			_ = b.ownerID.Set(db.Statement.Context, s.value, s.ownerID)
		}
	}
}

// around is a statement that may create sessions by its model's associations. When it
// fails after they were stored, as by a hook of the owner's, they are rolled back with
// it.
type around struct {
	stmt *gorm.Statement
	list []snapshot
	box  outbox
}

func (b *binding) beginAround(db *gorm.DB) {
	stmt := db.Statement
	if stmt.Schema == nil {
		return
	}
	others := len(stmt.Schema.Relationships.Relations)
	if b.mine(stmt) && b.owner != nil {
		others-- // which is never written
	}
	if others == 0 {
		return
	}
	// GORM copies the settings to the statements within.
	stmt.Settings.LoadOrStore(aroundKey+b.schema.Table, &around{stmt: stmt})
}

func (b *binding) endAround(db *gorm.DB) {
	a := b.around(db)
	if a == nil || a.stmt != db.Statement {
		return
	}
	db.Statement.Settings.Delete(aroundKey + b.schema.Table)
	_, within := db.Statement.ConnPool.(gorm.TxCommitter)
	if db.Error != nil && (within || !db.SkipDefaultTransaction) { // else they are stored
		b.restore(db, a.list)
		b.send(db, a.box.after(db.Error)...)
		return
	}
	b.send(db, a.box.events...)
}

func (b *binding) around(db *gorm.DB) *around {
	v, _ := db.Get(aroundKey + b.schema.Table)
	a, _ := v.(*around)
	return a
}

// checkCreate refuses the creates that cannot store a digest, and reports
// whether this one is GORM's, for an association of another model.
func (b *binding) checkCreate(db *gorm.DB) (association bool, err error) {
	stmt := db.Statement
	if err := b.intact(); err != nil {
		return false, err
	}
	if unchanged, err := b.savedUnchanged(db); err != nil {
		return false, err
	} else if unchanged {
		return false, errNothingToInsert
	}
	if insert, _ := stmt.Clauses["INSERT"].Expression.(clause.Insert); insert.Modifier != "" {
		return false, fmt.Errorf("%w: INSERT %s could overwrite a session, or store none", ErrUnsafeCreate, insert.Modifier)
	}
	if len(stmt.Selects)+len(stmt.Omits) > 0 {
		selected, restricted := stmt.SelectAndOmitColumns(true, false)
		for _, f := range b.required() {
			if keep, said := selected[f.DBName]; said && !keep || !said && restricted {
				return false, fmt.Errorf("%w: Select or Omit leaves out %s: every column of the session must be stored", ErrUnsafeCreate, f.DBName)
			}
		}
	}
	conflict, upsert := stmt.Clauses["ON CONFLICT"]
	if !upsert {
		return false, nil
	}
	onConflict, _ := conflict.Expression.(clause.OnConflict)
	if _, nested := db.Get(savedMap); nested && onConflict.UpdateAll == db.FullSaveAssociations {
		return true, nil
	}
	return false, fmt.Errorf("%w: an upsert, or Save of a session that is not stored any more, could overwrite or revive one", ErrUnsafeCreate)
}

// savedUnchanged recognises Save on MySQL, which counts rows that change: where
// nothing does, GORM takes the session for one that is not stored, and inserts.
func (b *binding) savedUnchanged(db *gorm.DB) (bool, error) {
	stmt := db.Statement
	conflict, _ := stmt.Clauses["ON CONFLICT"].Expression.(clause.OnConflict)
	if db.Name() != "mysql" || !conflict.UpdateAll || !slices.Equal(stmt.Selects, []string{"*"}) ||
		stmt.ReflectValue.Kind() != reflect.Struct || stmt.ReflectValue.Type() != b.schema.ModelType {
		return false, nil
	}
	id, _ := b.id.ValueOf(stmt.Context, stmt.ReflectValue)
	return b.isStored(db, id)
}

// isStored reports whether a session of that ID is stored, as far as the
// statement may see it.
func (b *binding) isStored(db *gorm.DB, id any) (bool, error) {
	tx := db.Session(&gorm.Session{NewDB: true}).Set(readPrimary, struct{}{}).Model(b.value())
	if db.Statement.Unscoped {
		tx = tx.Unscoped()
	}
	var n int64
	err := tx.Where(clause.Eq{Column: at(b.id), Value: id}).Count(&n).Error
	return n == 1, err
}

// createAssociated leaves only the new ones of an association's sessions to
// GORM's insert. It would write the stored ones too, with ON CONFLICT: a new
// token for a session that keeps its old one, or a deleted session back.
func (b *binding) createAssociated(db *gorm.DB, fresh, stored []reflect.Value) {
	stmt := db.Statement
	delete(stmt.Clauses, "ON CONFLICT")
	if db.FullSaveAssociations {
		for _, v := range stored {
			if len(sessionAt(v).TokenDigest) == 0 {
				continue // loaded in part: the rest of its columns would be emptied
			}
			tx := db.Session(&gorm.Session{NewDB: true, SkipHooks: stmt.SkipHooks})
			value := v.Addr().Interface()
			if db.AddError(tx.Select("*").Omit(clause.Associations).Updates(value).Error) != nil {
				return
			}
		}
	}
	if len(stored) == 0 {
		return
	}
	if len(fresh) == 0 {
		db.Error = errNothingToInsert
		return
	}
	list := reflect.New(reflect.SliceOf(reflect.PointerTo(b.schema.ModelType)))
	for _, v := range fresh {
		list.Elem().Set(reflect.Append(list.Elem(), v.Addr()))
	}
	stmt.Dest, stmt.ReflectValue = list.Interface(), list.Elem()
}

// fill makes a value a session: its owner, token, digest and times.
func (b *binding) fill(db *gorm.DB, v reflect.Value, now time.Time) error {
	base := sessionAt(v)
	if len(base.TokenDigest) != 0 {
		return fmt.Errorf("%w: the same session stands twice in the slice", ErrUnsafeCreate)
	}
	if err := b.fillOwner(db, v); err != nil {
		return err
	}
	if base.Token != "" && !b.format.matches(string(base.Token)) {
		return fmt.Errorf("%w: Token is not of the plugin's own format: leave it empty", ErrInvalidValue)
	}
	if base.Token == "" {
		base.Token = b.format.newToken()
	}
	if err := b.digestToken(base); err != nil {
		return err
	}
	if base.ID == uuid.Nil {
		id, err := uuid.NewV7()
		if err != nil {
			return fmt.Errorf("gormsessions: create: %w", err)
		}
		base.ID = id
	}
	if err := base.fillTimes(now, b.idleTime, b.lifetime); err != nil {
		return err
	}
	if base.Data == nil {
		base.Data = datatypes.JSONMap{}
	}
	if err := checkData(base.Data); err != nil {
		return err
	}
	return b.checkTexts(func(f *schema.Field) (any, bool) {
		value, zero := f.ValueOf(db.Statement.Context, v)
		return value, !zero
	})
}

// digestToken makes base's digest that of its token.
func (b *binding) digestToken(base *Base) error {
	base.TokenDigest = b.hashers[0].Digest(string(base.Token))
	if n := len(base.TokenDigest); n > maxDigest {
		return fmt.Errorf("%w: Config.Hashers[0] made a digest of %d bytes, at most %d fit", ErrInvalidValue, n, maxDigest)
	}
	return nil
}

func (b *binding) fillOwner(db *gorm.DB, v reflect.Value) error {
	if b.owner == nil {
		return nil
	}
	ctx := db.Statement.Context
	key, zero := b.ownerID.ValueOf(ctx, v)
	if owner, none := b.owner.Field.ValueOf(ctx, v); !none {
		saved, unsaved := b.owner.References[0].PrimaryKey.ValueOf(ctx, reflect.ValueOf(owner))
		if unsaved {
			return fmt.Errorf("%w: save it before its session", ErrZeroOwner)
		}
		if !zero && key != saved {
			return fmt.Errorf("%w: Owner has the key %v, but OwnerID is %v", ErrWrongOwner, saved, key)
		}
		return b.ownerID.Set(ctx, v, saved)
	}
	if zero {
		return fmt.Errorf("%w: set Owner or OwnerID", ErrZeroOwner)
	}
	return nil
}

// fillTimes normalises the times that the application set and fills in the others.
func (b *Base) fillTimes(now time.Time, idle, lifetime time.Duration) error {
	if b.IdleTimeout < 0 {
		return fmt.Errorf("%w: IdleTimeout is negative: use gormsessions.Never for no limit", ErrInvalidValue)
	}
	if n := utf8.RuneCountInString(b.RevokedReason); n > maxReason {
		return fmt.Errorf("%w: RevokedReason has %d characters, at most %d fit", ErrInvalidValue, n, maxReason)
	}
	for _, t := range b.optionalTimes() {
		normal, err := storedTime(t.name, *t.value)
		if err != nil {
			return err
		}
		*t.value = normal
	}
	for _, t := range b.times() {
		if t.value.IsZero() {
			*t.value = now
		}
		normal, err := storedTime(t.name, t.value)
		if err != nil {
			return err
		}
		*t.value = *normal
	}
	if b.IdleTimeout == 0 && b.ExpiresAt == nil {
		b.IdleTimeout = idle
	}
	if b.Deadline == nil && lifetime > 0 {
		deadline := stored(now.Add(lifetime))
		b.Deadline = &deadline
	}
	if b.ExpiresAt == nil && b.slides() {
		expiry := stored(now.Add(b.IdleTimeout))
		b.ExpiresAt = &expiry
	}
	b.capExpiry()
	return nil
}

// beforeUpdate keeps an update of the application's to its own columns.
func (b *binding) beforeUpdate(db *gorm.DB) {
	stmt := db.Statement
	if db.Error != nil || !b.mine(stmt) {
		return
	}
	if len(stmt.Joins) > 0 {
		_ = db.AddError(errJoins)
		return
	}
	stmt.Omits = append(slices.Clip(stmt.Omits), b.ownerName()...)
	if own, ok := db.Get(ownUpdate); ok && own == b {
		// A scope that With brought may run others only now.
		if where, _ := stmt.Clauses["WHERE"].Expression.(clause.Where); slices.ContainsFunc(where.Exprs, alternative) {
			_ = db.AddError(fmt.Errorf("%w: a scope with an Or of its own cannot be used here", ErrInvalidValue))
		}
		return
	}
	// GORM knows them as create-only by their Go names, which a field of the
	// application's may share.
	for _, name := range b.schema.DBNames {
		if b.readOnly(b.schema.FieldsByDBName[name]) {
			stmt.Omits = append(stmt.Omits, name)
		}
	}
	if err := b.checkUpdate(stmt); err != nil {
		_ = db.AddError(err)
	}
}

func (b *binding) checkUpdate(stmt *gorm.Statement) error {
	c := stmt.Clauses["SET"]
	if set, ok := c.Expression.(clause.Set); ok { // GORM's generics API
		set = slices.Clone(set)
		values := make(map[string]any, len(set))
		for i, a := range set {
			value, err := b.storable(b.named(a.Column.Name), a.Value)
			if err != nil {
				return err
			}
			set[i].Value, values[a.Column.Name] = value, value
		}
		c.Expression = set
		stmt.Clauses["SET"] = c
		return b.checkMap(values)
	}
	dest := reflect.Indirect(reflect.ValueOf(stmt.Dest))
	if values, ok := dest.Interface().(map[string]any); ok {
		values = maps.Clone(values) // the caller's stays as it is
		for name, value := range values {
			value, err := b.storable(b.named(name), value)
			if err != nil {
				return err
			}
			values[name] = value
		}
		stmt.Dest = values
		return b.checkMap(values)
	}
	if dest.Type() != b.schema.ModelType {
		return b.checkOther(stmt)
	}
	if dest.CanAddr() {
		base := sessionAt(dest)
		if selected, _ := stmt.SelectAndOmitColumns(false, true); base.Data == nil && selected[b.data.DBName] {
			base.Data = datatypes.JSONMap{}
		}
		if err := checkData(base.Data); err != nil {
			return err
		}
	}
	return b.checkTexts(func(f *schema.Field) (any, bool) {
		value, zero := f.ValueOf(stmt.Context, dest)
		return value, !zero
	})
}

// checkOther checks an update by a struct of another type, of which GORM takes the
// fields that have the columns' names.
func (b *binding) checkOther(stmt *gorm.Statement) error {
	other := &gorm.Statement{DB: stmt.DB}
	if other.Parse(stmt.Dest) != nil {
		return nil // GORM says so
	}
	dest := reflect.Indirect(reflect.ValueOf(stmt.Dest))
	if dest.Type() != other.Schema.ModelType {
		return nil
	}
	texts := map[*schema.Field]any{}
	for _, f := range b.schema.Fields {
		theirs := other.Schema.LookUpField(f.DBName)
		if f.DBName == "" || theirs == nil {
			continue
		}
		value, zero := theirs.ValueOf(stmt.Context, dest)
		if zero {
			continue
		}
		value, err := b.storable(f, value)
		if err != nil {
			return err
		}
		texts[f] = value
	}
	return b.checkTexts(func(f *schema.Field) (any, bool) {
		value, ok := texts[f]
		return value, ok
	})
}

// storable makes the value of an update one that GORM stores as the column has it.
func (b *binding) storable(f *schema.Field, value any) (any, error) {
	switch {
	case f == nil:
	case f == b.data:
		return asData(value), nil
	case f.IndirectFieldType == abilitiesType:
		list, err := asAbilities(value)
		if err != nil {
			err = fmt.Errorf("%s: %w", f.Name, err)
		}
		return list, err
	}
	return value, nil
}

// named finds the field that a key of an update's map means, however it is
// spelled: GORM takes a name that it does not know for SQL.
func (b *binding) named(name string) *schema.Field {
	if f := b.schema.LookUpField(name); f != nil {
		return f
	}
	name = strings.Trim(name[strings.LastIndexByte(name, '.')+1:], " \t\r\n`\"[]'")
	for _, f := range b.schema.Fields {
		if f.DBName != "" && strings.EqualFold(name, f.DBName) {
			return f
		}
	}
	return nil
}

// asData makes a value for the column Data one that GORM stores: nil is {}.
func asData(value any) any {
	switch v := value.(type) {
	case nil:
		return datatypes.JSONMap{}
	case map[string]any:
		value = datatypes.JSONMap(v)
	}
	if v, ok := value.(datatypes.JSONMap); ok && v == nil {
		return datatypes.JSONMap{}
	}
	return value
}

// checkMap refuses columns that an update names, but GORM would silently leave
// as they are, and values that cannot be stored.
func (b *binding) checkMap(values map[string]any) error {
	texts := make(map[*schema.Field]any, len(values))
	for name, value := range values {
		if b.owner != nil && name == b.owner.Name {
			return fmt.Errorf("%w: a session stays with its owner", ErrReadOnlyColumn)
		}
		f := b.named(name)
		if f == nil {
			continue
		}
		if b.readOnly(f) {
			return fmt.Errorf("%w: %s is set on create, and afterwards only by the plugin's own methods, if at all", ErrReadOnlyColumn, f.DBName)
		}
		if data, ok := value.(datatypes.JSONMap); ok && f == b.data {
			if err := checkData(data); err != nil {
				return err
			}
		}
		texts[f] = value
	}
	return b.checkTexts(func(f *schema.Field) (any, bool) {
		value, ok := texts[f]
		return value, ok
	})
}

// beforeDelete refuses what GORM would leave out of a DELETE: more would be
// deleted than was asked for.
func (b *binding) beforeDelete(db *gorm.DB) {
	if db.Error == nil && b.mine(db.Statement) && len(db.Statement.Joins) > 0 {
		_ = db.AddError(errJoins)
	}
}

// afterDelete deletes the sessions of an owner that GORM deleted, and the retired
// tokens of sessions, where no foreign key does: SQLite enforces them only on
// connections opened with _foreign_keys=on, and an application may have told GORM
// to make none.
func (b *binding) afterDelete(db *gorm.DB) {
	stmt := db.Statement
	if db.Error != nil || db.DryRun || stmt.Schema == nil || db.RowsAffected == 0 {
		return
	}
	owner := b.owner != nil && stmt.Schema.ModelType == b.owner.FieldSchema.ModelType
	if !owner && !b.mine(stmt) {
		return
	}
	tx := db.Session(&gorm.Session{NewDB: true, SkipHooks: true}).Set(ownRaw, true).Session(&gorm.Session{})
	if keysWanted(tx) {
		if tx.Name() != "sqlite" {
			return
		}
		if enforced, err := foreignKeysEnforced(tx); err != nil || enforced {
			_ = db.AddError(err)
			return
		}
	}
	if !owner {
		if _, gone := db.Get(retiredGone); !gone {
			_ = db.AddError(b.deleteRetired(tx, keysOf(stmt, b.id)))
		}
		return
	}
	key := b.owner.References[0].PrimaryKey
	keys := keysOf(stmt, key)
	owners := tx.Unscoped().Model(reflect.New(stmt.Schema.ModelType).Interface()).
		Select("1").Where("? = ?", clause.Column{Table: b.schema.Table, Name: b.ownerID.DBName}, at(key))
	orphans := tx.Unscoped().Model(b.value()).Where("NOT EXISTS (?)", owners)
	if keys == nil {
		_ = db.AddError(orphans.Delete(b.value()).Error)
		return
	}
	orphans = orphans.Where(clause.IN{Column: at(b.ownerID), Values: keys}).Session(&gorm.Session{})
	gone := reflect.New(reflect.SliceOf(b.schema.ModelType))
	if db.AddError(orphans.Set(readPrimary, struct{}{}).Select(b.id.DBName).Find(gone.Interface()).Error) != nil || gone.Elem().Len() == 0 ||
		db.AddError(orphans.Set(retiredGone, true).Delete(b.value()).Error) != nil {
		return
	}
	ids := make([]any, gone.Elem().Len())
	for i := range ids {
		ids[i] = sessionAt(gone.Elem().Index(i)).ID
	}
	for some := range slices.Chunk(ids, maxKeys) {
		_ = db.AddError(b.deleteRetired(tx, some))
	}
}

// deleteRetired deletes the retired tokens of sessions that are no more: of those, or
// (nil) of all, which looks at every token.
func (b *binding) deleteRetired(tx *gorm.DB, sessions []any) error {
	orphaned := "DELETE FROM ? WHERE NOT EXISTS (SELECT 1 FROM ? WHERE ? = session_id)"
	vars := []any{b.retiredTable(), clause.Table{Name: b.schema.Table}, clause.Column{Table: b.schema.Table, Name: b.id.DBName}}
	if sessions != nil {
		orphaned, vars = orphaned+" AND session_id IN ?", append(vars, sessions)
	}
	return tx.Exec(orphaned, vars...).Error
}

const maxKeys = 1000 // databases limit the parameters of a statement

// keysOf are the keys that a DELETE was limited to, if it was: then what it left behind
// is found by an index.
func keysOf(stmt *gorm.Statement, key *schema.Field) []any {
	where, _ := stmt.Clauses["WHERE"].Expression.(clause.Where)
	if slices.ContainsFunc(where.Exprs, widens) {
		return nil
	}
	is := func(column any) bool {
		c, ok := column.(clause.Column)
		return ok && (c.Name == key.DBName || c.Name == clause.PrimaryKey && key == stmt.Schema.PrioritizedPrimaryField)
	}
	for _, expr := range where.Exprs {
		var keys []any
		switch e := expr.(type) {
		case clause.IN:
			if is(e.Column) {
				keys = e.Values
			}
		case clause.Eq:
			if is(e.Column) {
				keys = []any{e.Value}
			}
		}
		plain := !slices.ContainsFunc(keys, func(key any) bool {
			switch kind := reflect.ValueOf(key).Kind(); kind {
			case reflect.String, reflect.Array:
				return false
			default:
				return kind < reflect.Int || kind > reflect.Uint64
			}
		})
		if len(keys) > 0 && len(keys) <= maxKeys && plain {
			return keys
		}
	}
	return nil
}

// keysWanted reports whether the application lets GORM make foreign keys.
func keysWanted(db *gorm.DB) bool {
	return !db.DisableForeignKeyConstraintWhenMigrating && !db.IgnoreRelationshipsWhenMigrating
}

// required are the columns that every create must store.
func (b *binding) required() []*schema.Field {
	list := make([]*schema.Field, 0, 16)
	for _, c := range b.base() {
		list = append(list, *c.field)
	}
	if b.owner != nil {
		list = append(list, b.ownerID)
	}
	return list
}

func (b *binding) ownerName() []string {
	if b.owner == nil {
		return nil
	}
	return []string{b.owner.Name}
}

func sessionAt(v reflect.Value) *Base { return v.Addr().Interface().(Model).SessionBase() }

// elements are the structs of a create's value.
func (b *binding) elements(v reflect.Value) ([]reflect.Value, error) {
	list := []reflect.Value{v}
	if v.Kind() == reflect.Slice || v.Kind() == reflect.Array {
		list = make([]reflect.Value, v.Len())
		for i := range list {
			list[i] = v.Index(i)
		}
	}
	for i, v := range list {
		v = reflect.Indirect(v)
		switch {
		case !v.IsValid():
			return nil, fmt.Errorf("%w: element %d is nil", ErrInvalidValue, i)
		case v.Type() != b.schema.ModelType:
			return nil, fmt.Errorf("%w: %s is created from a pointer to one or a slice of them, not from a %v", ErrUnsafeCreate, b.schema.Name, v.Type())
		case !v.CanAddr():
			return nil, fmt.Errorf("%w: give the create a pointer, or its token is lost", ErrUnsafeCreate)
		}
		list[i] = v
	}
	return list, nil
}
