//! `devlink resource`: how many SFs a PF can have, of its own and of a DPU's host (`mlx5_sf_hw_table_res_register` in
//! `drivers/net/ethernet/mellanox/mlx5/core/sf/hw_table.c`). Programs that show resources ask for dpipe tables first, of which
//! there are none.

use netlink::{Builder, Errno};

use super::dev::put_name;
use crate::card::{Cx, Served};
use crate::instance::{self, Named};
use crate::nests::nest;
use crate::numbers::{attribute as a, command as c};
use crate::refusal::Refusal;
use crate::reply::ReplyWriter;
use crate::request::Attributes;

/// DEVLINK_RESOURCE_UNIT_ENTRY.
const UNIT_ENTRY: u8 = 0;

/// A resource, whose size cannot be changed: its number (MLX5_DL_RES_...), its name, and its size.
type Resource = (u64, &'static str, u64);

/// The resources of an instance. Only a PF has some.
fn resources(served: &Served, named: &Named) -> Option<[Resource; 2]> {
    let config = served.card.engine().config();
    match named {
        Named::Pf(_) => {
            Some([(1, "max_local_SFs", config.max_sfs.into()), (2, "max_external_SFs", config.external_sfs().into())])
        }
        Named::Function(_) => None,
    }
}

fn put_resource(to: &mut Builder, (id, name, size): Resource) {
    nest(to, a::RESOURCE, |to| {
        to.text(a::RESOURCE_NAME, name).u64(a::RESOURCE_SIZE, size).u64(a::RESOURCE_ID, id);
        to.u64(a::RESOURCE_SIZE_GRAN, 1).u64(a::RESOURCE_SIZE_MAX, size).u64(a::RESOURCE_SIZE_MIN, size);
        to.u8(a::RESOURCE_UNIT, UNIT_ENTRY);
    });
}

/// `devlink_nl_resource_dump_doit`, which in spite of its name is about one instance.
pub(super) fn show(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    reply: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    let named = instance::find(served, cx, attributes.required_handle()?)?;
    let Some(resources) = resources(served, &named) else {
        return Err(Refusal::bare(Errno::OPNOTSUPP));
    };
    reply.begin_list();
    reply.add(c::RESOURCE_DUMP, |to| {
        put_name(to, named.device());
        nest(to, a::RESOURCE_LIST, |to| resources.into_iter().for_each(|resource| put_resource(to, resource)));
    });
    Ok(())
}

/// `devlink_nl_resource_set_doit`.
pub(super) fn set(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    _: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    let named = instance::find(served, cx, attributes.required_handle()?)?;
    let id = attributes.u64(a::RESOURCE_ID)?.ok_or(Refusal::missing(a::RESOURCE_ID))?;
    let size = attributes.u64(a::RESOURCE_SIZE)?.ok_or(Refusal::missing(a::RESOURCE_SIZE))?;
    let found = resources(served, &named).into_iter().flatten().find(|resource| resource.0 == id);
    let (.., has) = found.ok_or(Refusal::bare(Errno::INVAL))?;
    match size {
        _ if size > has => Err(Refusal::new(Errno::INVAL, "Size larger than maximum")),
        _ if size < has => Err(Refusal::new(Errno::INVAL, "Size smaller than minimum")),
        _ => Ok(()),
    }
}

/// `devlink_nl_dpipe_table_get_doit`: an empty list.
pub(super) fn dpipe_tables(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    reply: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    let named = instance::find(served, cx, attributes.required_handle()?)?;
    let device = named.device();
    reply.begin_list();
    reply.add(c::DPIPE_TABLE_GET, |to| {
        put_name(to, device);
        nest(to, a::DPIPE_TABLES, |_| {});
    });
    Ok(())
}
